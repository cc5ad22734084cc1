from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

import vaezoo
from vaezoo.autoencoder import Autoencoder, AutoencoderConfig, Delta, Latent, LatentShape
from vaezoo.data import ImageData, load_data
from vaezoo.data.splits import ResidentSplit
from vaezoo.errors import VaezooError
from vaezoo.evaluation import AXES, Report, evaluate
from vaezoo.evaluation.disentanglement import PROTOCOLS, Protocol

FAST: dict[str, Any] = {"n": 150, "samples": 3, "likelihood_n": 20, "batch_size": 64}
SMALL_VQ = {"codes": 8, "code_dim": 4, "channels": 8, "residual_channels": 4, "downsample": 2}
OPTIONS: dict[str, dict[str, Any]] = {"vq_vae": SMALL_VQ, "vq_vae2": SMALL_VQ}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture
def vae() -> Autoencoder:
    torch.manual_seed(0)
    return vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3)


def test_the_same_call_gives_the_same_report_and_leaves_the_random_state(
    vae: Autoencoder, digits: ImageData
) -> None:
    torch.manual_seed(5)
    vae.train()
    first = evaluate(vae, digits, **FAST)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    torch.manual_seed(99)
    assert evaluate(vae, digits, **FAST).to_dict() == first.to_dict()
    assert vae.training
    other = evaluate(vae, digits, **FAST, seed=1)
    assert other["likelihood/log_likelihood"].value != first["likelihood/log_likelihood"].value


def test_the_seed_draws_the_latents(vae: Autoencoder) -> None:
    same = load_data(torch.full((60, 1, 8, 8), 128, dtype=torch.uint8))  # images tell no seed from another
    a, b = (evaluate(vae, same, axes=["reconstruction"], seed=seed) for seed in (0, 1))
    assert a["reconstruction/mse"].value == b["reconstruction/mse"].value
    assert a["reconstruction/distortion"].value != b["reconstruction/distortion"].value


def test_an_axis_does_not_depend_on_the_others(vae: Autoencoder, digits: ImageData) -> None:
    everything = evaluate(vae, digits, **FAST)
    for axis in AXES:
        alone = evaluate(vae, digits, **FAST, axes=[axis])
        assert alone.metrics == {k: v for k, v in everything.metrics.items() if k.startswith(axis + "/")}
        assert alone.skipped == {k: v for k, v in everything.skipped.items() if k.startswith(axis + "/")}


def test_features_of_the_images_are_extracted_once_and_shared(vae: Autoencoder, digits: ImageData) -> None:
    """Images, reconstructions, samples and images of the other split: 150 each."""
    seen = []

    def corner(x: Tensor) -> Tensor:
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
        seen.append(len(x))
        return x[:, 0, 2:5, 2:5].flatten(1)

    report = evaluate(vae, digits, **FAST, features=corner, axes=["reconstruction", "sampling"])
    assert sum(seen) == 4 * 150
    assert {"reconstruction/rfd_corner", "sampling/frechet_corner"} <= report.metrics.keys()
    assert report.header["features"] == {"name": "corner", "hash": None}


def test_axes_stay_apart_where_pixels_are_drawn_anew() -> None:
    """Training images that are binarised dynamically: the same draw, whichever axis asks for them."""
    data = load_data("digits", binarize="dynamic")
    torch.manual_seed(0)
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3)
    everything = evaluate(model, data, **FAST, split="train", axes=["reconstruction", "sampling"])
    for axis in ("reconstruction", "sampling"):
        alone = evaluate(model, data, **FAST, split="train", axes=[axis])
        assert alone.metrics == {k: v for k, v in everything.metrics.items() if k.startswith(axis + "/")}


def test_averages_are_over_images_whatever_the_batch_size(vae: Autoencoder, digits: ImageData) -> None:
    options = {**FAST, "n": 10_000, "axes": ["reconstruction"]}
    reports = [evaluate(vae, digits, **{**options, "batch_size": size}) for size in (180, 100, 7)]
    x = digits.test.batch(torch.arange(len(digits.test)))
    expected = (vae.reconstruct(x) - x).square().mean().item()
    for report in reports:
        assert report["reconstruction/mse"].n == 180
        assert report["reconstruction/mse"].value == pytest.approx(expected, rel=1e-5)
        for name in ("psnr", "ssim"):
            ours, theirs = (r[f"reconstruction/{name}"].value for r in (report, reports[0]))
            assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("name", vaezoo.list_models())
def test_every_model_of_the_registry(name: str, digits: ImageData) -> None:
    torch.manual_seed(0)
    model = vaezoo.create(name, image_shape=(1, 8, 8), **OPTIONS.get(name, {}))
    report = evaluate(model, digits, **FAST)
    assert report.header["model"]["name"] == name
    assert Report.from_dict(json.loads(report.to_json())) == report
    measured = {f"reconstruction/{metric}" for metric in ("mse", "l1", "psnr", "ssim", "rfd_pixels8x8")}
    assert measured <= set(report.metrics)
    assert report.header["features"]["name"] == "pixels8x8"
    assert report.skipped["disentanglement/mig"] == "digits has no ground-truth factors"
    if model.prior is None:
        assert "fit_prior" in report.skipped["likelihood/elbo"]
        assert "fit_prior" in report.skipped["sampling/frechet_pixels8x8"]
    else:
        assert {"likelihood/elbo", "sampling/frechet_pixels8x8", "sampling/recall_pixels8x8"} <= set(
            report.metrics
        )
    codes = model.latent.codes is not None
    assert any(metric.startswith("latents/perplexity") for metric in report.metrics) == codes
    assert ("latents/active_units" in report.metrics) != codes


def test_a_vq_vae_with_a_prior_has_an_exact_joint_log_probability(digits: ImageData) -> None:
    from vaezoo.priors.transformer import TransformerPrior

    torch.manual_seed(0)
    model = vaezoo.create("vq_vae", image_shape=(1, 8, 8), **SMALL_VQ)
    model.prior = TransformerPrior(TransformerPrior.Config(width=8, heads=2, depth=1), model.latent)
    report = evaluate(model, digits, **{**FAST, "likelihood_n": 150}, axes=["likelihood", "sampling"])
    elbo, bound = report["likelihood/elbo"], report["likelihood/log_likelihood"]
    assert bound.value == pytest.approx(elbo.value, rel=1e-6)
    assert report.header["model"]["prior"]["name"] == "transformer"


class Looker(Autoencoder):
    """Not registered; its codes are the centre of mass and the area, which know x and y of a sprite."""

    @property
    def latent(self) -> LatentShape:
        return LatentShape(((3,),))

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.logits = torch.nn.Parameter(torch.zeros(1))

    def encode(self, x: Tensor) -> Delta:
        area = x.sum((1, 2, 3))
        steps = torch.arange(x.shape[-1], device=x.device)
        centre_x, centre_y = ((x.sum((1, axis)) * steps).sum(1) / area for axis in (2, 3))
        return Delta(torch.stack([area, centre_x, centre_y], 1))

    def decode(self, z: Latent) -> Distribution:
        assert isinstance(z, Tensor)
        logits = torch.zeros(len(z), *self.config.image_shape) + self.logits
        return Independent(Bernoulli(logits=logits, validate_args=False), 3, validate_args=False)


def test_mig_of_codes_that_see_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaezoo.evaluation.disentanglement.POINTS", 4000)
    monkeypatch.setitem(PROTOCOLS, "quick", Protocol("quick", 600, 300, 3, 20, 20))
    data = load_data("sprites", size=32, train_size=100, test_size=100, validation=50)
    model = Looker(AutoencoderConfig(image_shape=(1, 32, 32)))
    report = evaluate(model, data, axes=["disentanglement", "reconstruction"], n=50)
    mig = report["disentanglement/mig"]
    gaps = dict(part.split() for part in mig.note.split(";")[0].split(", "))
    assert float(gaps["x"]) > 0.7
    assert float(gaps["y"]) > 0.7
    assert float(gaps["orientation"]) < 0.05
    assert mig.n == 4000
    assert report.header["model"]["name"] == "Looker"
    assert report.header["protocol"] == "quick"
    skipped = [name for name in report.skipped if name.startswith("disentanglement")]
    assert not skipped
    assert report["disentanglement/dci_informativeness"].n == 300
    for name in ("sap", "dci_disentanglement", "beta_vae_score", "factor_vae_score", "explicitness"):
        assert "protocol quick" in report[f"disentanglement/{name}"].note
    assert evaluate(model, data, axes=["disentanglement"], n=50).metrics == {
        name: metric for name, metric in report.metrics.items() if name.startswith("disentanglement")
    }
    # A coin toss for every pixel: ln 2 nats and a squared error of 1/4 each.
    assert report["reconstruction/distortion"].value == pytest.approx(32 * 32 * 0.693147, rel=1e-5)
    assert report["reconstruction/mse"].value == pytest.approx(0.25, rel=1e-6)


def test_disentanglement_on_images_that_cannot_be_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "quick", Protocol("quick", 2000, 1000, 1, 20, 20))
    sprites = load_data("sprites", size=16, train_size=100, test_size=400, validation=50)
    images = sprites.test.batch(torch.arange(400))
    fixed = ResidentSplit((255 * images).byte(), factors=sprites.test.factors)
    data = replace(sprites, test=fixed, train=fixed, validation=fixed)
    report = evaluate(Looker(AutoencoderConfig(image_shape=(1, 16, 16))), data, axes=["disentanglement"])
    assert report["disentanglement/mig"].n == 400
    assert report["disentanglement/dci_informativeness"].n == 133
    assert "fitted to 267 codes" in report["disentanglement/sap"].note
    for name in ("beta_vae_score", "factor_vae_score"):
        assert "images of chosen factors" in report.skipped[f"disentanglement/{name}"]


def test_fashion_mnist_costs_what_its_pixels_say() -> None:
    """A Bernoulli of each pixel's mean gives 385.02 nats; no model of binarised images gives
    less than 189.86, what a decoder that knew the grey levels would give."""
    root = os.environ.get("VAEZOO_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    try:
        data = load_data("fashion_mnist", root=root)
    except VaezooError as error:
        pytest.skip(str(error))
    parts = [data.train, data.validation]
    sums = torch.stack([part.batch(torch.arange(len(part))).sum(0, dtype=torch.float64) for part in parts])
    mean = sums.sum(0) / sum(map(len, parts))
    model = Looker(AutoencoderConfig(image_shape=(1, 28, 28)))
    model.logits = torch.nn.Parameter(torch.logit(mean.clamp(1e-6, 1 - 1e-6)).float())
    report = evaluate(model, data, axes=["reconstruction"])
    assert report["reconstruction/distortion"].value == pytest.approx(385.02, abs=0.01)
    x = data.test.batch(torch.arange(len(data.test)))
    entropy = Bernoulli(probs=x, validate_args=False).entropy().sum((1, 2, 3)).mean()
    assert entropy.item() == pytest.approx(189.86, abs=0.01)


def test_the_floor_is_far_below_an_untrained_model(vae: Autoencoder, digits: ImageData) -> None:
    report = evaluate(vae, digits, **FAST, axes=["sampling"])
    fake, floor = report["sampling/frechet_pixels8x8"], report["sampling/frechet_pixels8x8_real"]
    assert floor.value < 0.1 * fake.value
    assert fake.se is not None
    assert 0 < fake.se < 0.1 * fake.value


class Copier(Looker):
    """Its samples are images 3, 1, 4, ... that it was given."""

    copies: Tensor

    def sample(self, n: int, *args: Any, **kwargs: Any) -> Tensor:
        return self.copies[:n]

    def require_prior(self) -> Any:
        return None


@pytest.mark.parametrize("split", ["test", "train"])
def test_copies_of_training_images_are_found_and_named(digits: ImageData, split: str) -> None:
    rows = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(0))[:180]
    model = Copier(AutoencoderConfig(image_shape=(1, 8, 8)))
    model.copies = digits.train.batch(rows)
    every = len(digits.train)
    options: dict[str, Any] = {"test": {"n": 180, "training_n": every}, "train": {"n": every}}[split]
    report = evaluate(model, digits, split=split, axes=["sampling"], batch_size=every, **options)
    nearest = report.details["sampling/nearest_pixels8x8"]
    if split == "test":
        assert nearest.values == rows[:64].tolist()
        assert report["sampling/memorised_pixels8x8"].value == 1
        assert report["sampling/c_t_pixels8x8"].value < -8
        assert f"{every} of {every}" in report["sampling/c_t_pixels8x8"].note
        assert report.header["training_n"] == every
    else:  # all images of the split are training images; those held out are of validation
        images = digits.train.batch(torch.tensor(nearest.values).long())
        assert torch.equal(images, model.copies[:64])


def test_values_that_are_not_finite_are_never_metrics(vae: Autoencoder, digits: ImageData) -> None:
    with torch.no_grad():
        list(vae.parameters())[-1].fill_(float("nan"))
    report = evaluate(vae, digits, **FAST, axes=["reconstruction", "likelihood", "sampling"])
    assert "not finite" in report.skipped["reconstruction/mse"]
    assert "not finite" in report.skipped["reconstruction/rfd_pixels8x8"]
    assert "not finite" in report.skipped["likelihood/log_likelihood"]
    for name in ("frechet", "kernel_distance", "recall", "coverage", "vendi", "memorised", "c_t", "nearest"):
        assert "not finite" in report.skipped[f"sampling/{name}_pixels8x8"]
    sound = {  # what does not ask the decoder
        "likelihood/rate",
        "sampling/frechet_pixels8x8_real",
        "sampling/vendi_pixels8x8_real",
    }
    assert set(report.metrics) == sound
    report.to_json()


def test_one_image_is_enough_not_to_fail(vae: Autoencoder, digits: ImageData) -> None:
    report = evaluate(vae, digits, **{**FAST, "n": 1})
    assert report["reconstruction/mse"].se is None
    assert "at least 2" in report.skipped["sampling/frechet_pixels8x8"]
    assert "more than 5" in report.skipped["sampling/recall_pixels8x8"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": ["sampel"]}, "did you mean 'sampling'"),
        ({"split": "tset"}, "did you mean 'test'"),
        ({"features": "inceptoin"}, "did you mean 'inception'"),
        ({"protocol": "locatello"}, "did you mean 'locatello2019'"),
        ({"n": 0}, "n=0"),
        ({"samples": 0}, "samples=0"),
    ],
)
def test_mistakes_are_named(
    vae: Autoencoder, digits: ImageData, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(VaezooError, match=message):
        evaluate(vae, digits, **{**FAST, **options})


def test_images_of_another_shape_are_refused(digits: ImageData) -> None:
    with pytest.raises(VaezooError, match=r"\(1, 28, 28\).*digits.*\(1, 8, 8\)"):
        evaluate(vaezoo.create("vae"), digits)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", vaezoo.list_models())
def test_on_a_gpu(name: str, digits: ImageData) -> None:
    torch.manual_seed(0)
    model = vaezoo.create(name, image_shape=(1, 8, 8), **OPTIONS.get(name, {}))
    here = evaluate(model, digits, **FAST)
    there = evaluate(model.cuda(), digits, **FAST)
    assert there.metrics.keys() == here.metrics.keys()
    for metric in ("mse", "psnr", "ssim"):
        a, b = (r[f"reconstruction/{metric}"].value for r in (here, there))
        assert a == pytest.approx(b, rel=1e-3)
