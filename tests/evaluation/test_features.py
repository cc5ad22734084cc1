"""The features that come with the package: what they claim, what they see, and which are chosen when."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vaezoo.data import ImageData, load_data
from vaezoo.data.sprites import render
from vaezoo.errors import VaezooError
from vaezoo.evaluation import features as features_module
from vaezoo.evaluation.classifiers import CLASSIFIERS, FEATURES, HEADER, WEIGHTS, load_classifier
from vaezoo.evaluation.features import make_features, pixel_features, weights_hash
from vaezoo.evaluation.frechet import frechet_distance, moments
from vaezoo.evaluation.sampling import extract

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "features.json"
ENOUGH = {"mnist": {"class": 0.99}, "fashion_mnist": {"class": 0.91}}


@pytest.fixture(scope="module")
def results() -> dict[str, dict]:
    if not RESULTS.is_file():
        pytest.skip("the results of benchmarks are not part of an installed package")
    return json.loads(RESULTS.read_text())


@pytest.fixture(scope="module")
def sprites() -> ImageData:
    return load_data("sprites")


def images_of(data: ImageData, n: int) -> Tensor:
    return data.test.batch(torch.arange(n))


def frechet(a: Tensor, b: Tensor) -> float:
    return frechet_distance(*moments(a), *moments(b)).item()


# --- The classifiers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_weights_are_those_that_were_tested(name: str, results: dict[str, dict]) -> None:
    path, claimed = WEIGHTS / f"{name}.safetensors", results[name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == claimed["sha256"]
    assert path.stat().st_size < 1_000_000
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    assert {key: claimed[key] for key in header.keys() & claimed.keys()} == {
        key: header[key] for key in header.keys() & claimed.keys()
    }
    assert {"data", "fingerprint", "seed", "epochs", "accuracy"} <= header.keys() & claimed.keys()
    assert claimed["constant_features"] == 0
    for head, least in ENOUGH.get(name, {}).items():
        assert claimed["accuracy"][head] >= least
    # Features that knew the training images would tell them from the test images.
    assert claimed["frechet_train_test"] < 0.01 * FEATURES


def check_accuracy(right: Tensor, claimed: float) -> None:
    """The share of right answers of a subset is the claimed one, within 4 standard errors."""
    share = right.double().mean().item()
    se = math.sqrt(max(claimed * (1 - claimed), 1e-4) / len(right))
    assert abs(share - claimed) < 4 * se, f"{share} is not {claimed}"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_accuracy_is_what_is_claimed(
    name: str, results: dict[str, dict], real_data: Callable[..., ImageData]
) -> None:
    data = real_data(name)
    assert data.fingerprint() == results[name]["fingerprint"]
    logits = load_classifier(name)(images_of(data, 1000))["class"]
    check_accuracy(logits.argmax(1) == data.test.labels[:1000], results[name]["accuracy"]["class"])


@pytest.mark.parametrize("size", [64, 32])
def test_accuracy_on_sprites_is_what_is_claimed(
    size: int, results: dict[str, dict], sprites: ImageData
) -> None:
    """An orientation is right if the sprite looks the same: squares after 10 of 40 steps, ellipses 20."""
    data = load_data("sprites", size=size)
    claimed = results["sprites"]["accuracy" if size == 64 else f"accuracy_at_{size}"]
    factors = data.test.factors[:1000]
    logits = load_classifier("sprites")(images_of(data, 1000))
    for (name, values), truth in zip(logits.items(), factors.unbind(1)):
        off = values.argmax(1) - truth
        if name == "orientation":
            off = off % torch.tensor([10, 20, 40])[factors[:, 0]]
        check_accuracy(off == 0, claimed[name])


def test_a_classifier_is_frozen() -> None:
    classifier = load_classifier("sprites")
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in classifier.modules())
    x = torch.rand(4, 1, 64, 64)
    alone = torch.cat([classifier.features(row.unsqueeze(0)) for row in x])
    torch.testing.assert_close(classifier.features(x), alone)


def test_the_distance_grows_with_what_is_wrong(sprites: ImageData) -> None:
    """More blur, more noise, fewer places: further away, and all of it above the floor."""
    features = make_features("sprites", (1, 64, 64), CPU)
    x, y = images_of(sprites, 1200).split(600)
    real = extract(features, x.split(250))
    floor = frechet(real, extract(features, y.split(250)))

    def blurred(sigma: float) -> Tensor:
        window = torch.softmax(-0.5 * (torch.arange(-8, 9) / sigma).square(), 0)
        rows = torch.nn.functional.conv2d(y, window.view(1, 1, 1, -1), padding=(0, 8))
        return torch.nn.functional.conv2d(rows, window.view(1, 1, -1, 1), padding=(8, 0))

    noise = torch.rand(y.shape, generator=torch.Generator().manual_seed(0))
    for wrong in (
        [blurred(sigma) for sigma in (1, 2, 4)],
        [torch.where(noise < share, 1 - y, y) for share in (0.01, 0.05, 0.2)],
        [y[sprites.test.factors[600:1200, 3] > x] for x in (10, 20, 26)],  # only sprites on the right
    ):
        distances = [frechet(real, extract(features, part.split(250))) for part in wrong]
        assert floor < distances[0] < distances[1] < distances[2], (floor, distances)


def test_channels_are_compared_one_by_one(sprites: ImageData) -> None:
    """Grey images copied to three channels are three times as far apart; a change of hue alone is seen."""
    features = make_features("sprites", (3, 64, 64), CPU)
    factors = sprites.test.factors[:400]
    a, b = (render(part, 64) for part in factors.split(200))
    grey = [features.extract(x) for x in (a, b)]
    colour = [features.extract(x.expand(-1, 3, -1, -1)) for x in (a, b)]
    assert colour[0].shape == (200, 3 * FEATURES)
    assert frechet(*colour) == pytest.approx(3 * frechet(*grey), rel=1e-4)
    warm, cold = (
        features.extract(render(torch.cat([factors, hue.expand(400, 1)], 1), 64))
        for hue in torch.tensor([[0], [4]])
    )
    assert frechet(warm, cold) > FEATURES


def test_images_of_another_size_are_resized(sprites: ImageData) -> None:
    classifier, factors = load_classifier("sprites"), sprites.test.factors[:200]
    small, large = (classifier.features(render(factors, size, antialias=True)) for size in (64, 128))
    assert small.shape == large.shape == (200, FEATURES)
    assert (small - large).square().mean() < 0.05 * small.var(0).mean()


def test_the_weights_are_in_the_wheel(tmp_path: Path) -> None:
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("this package is installed, there is nothing to build it from")
    pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")
    import zipfile

    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    for name in CLASSIFIERS:
        assert f"vaezoo/evaluation/weights/{name}.safetensors" in names


# --- Which features --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "shape", "chosen"),
    [
        ("mnist", (1, 28, 28), "mnist"),
        ("fashion_mnist", (1, 28, 28), "fashion_mnist"),
        ("sprites", (1, 64, 64), "sprites"),
        ("sprites", (3, 32, 32), "sprites"),
        ("mnist", (4, 28, 28), "pixels7x7"),
        ("digits", (1, 8, 8), "pixels8x8"),
        ("pixels", (1, 8, 8), "pixels8x8"),
    ],
)
def test_auto_takes_the_classifier_of_the_data(data: str, shape: tuple[int, int, int], chosen: str) -> None:
    assert make_features("auto", shape, CPU, data).name == chosen


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(VaezooError, match="did you mean 'fashion_mnist'"):
        make_features("fashion_mnits", (1, 28, 28), CPU)
    with pytest.raises(VaezooError, match="features='mnist' needs images of 1 or 3 channels, not 4"):
        make_features("mnist", (4, 28, 28), CPU)


def test_the_hash_is_that_of_the_weights() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))  # with a buffer of no dimensions
    before = make_features(net, (1, 8, 8), CPU).hash
    assert before is not None
    assert int(before, 16) >= 0
    assert len(before) == 16
    assert make_features(net, (1, 8, 8), CPU).hash == before
    state = net.state_dict()
    assert weights_hash(dict(reversed(state.items()))) == before
    assert weights_hash({key: value.bfloat16() for key, value in state.items()}) != before
    with torch.no_grad():
        net[1].bias[0] += 1
    assert make_features(net, (1, 8, 8), CPU).hash != before
    assert make_features(torch.flatten, (1, 8, 8), CPU).header() == {"name": "flatten", "hash": None}


def test_every_named_feature_has_a_hash_of_its_own() -> None:
    hashes = [make_features(name, (1, 28, 28), CPU).hash for name in (*CLASSIFIERS, "pixels")]
    hashes += [pixel_features(shape).hash for shape in ((1, 14, 14), (3, 28, 28))]
    assert len(set(hashes)) == len(hashes)
    assert None not in hashes
    assert make_features("pixels", (1, 28, 28), CPU).hash == pixel_features((1, 28, 28)).hash


def test_missing_weights_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(VaezooError, match=r"dinov2_vitl14_pretrain\.pth; fetch them once with python -c"):
        make_features("dinov2", (1, 28, 28), CPU)
    with pytest.raises(VaezooError, match=r"/dinov2_vits14/dinov2_vits14_pretrain\.pth'"):
        make_features("dinov2_vits14", (1, 28, 28), CPU)
    assert set(features_module.DINOV2) < set(features_module.NAMES)
