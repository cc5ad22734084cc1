"""Trained weights: those in the package are what the manifest says, and no other file is taken."""

import hashlib
import json
import math
import shutil

import pytest
import torch

import vaezoo
from vaezoo import pretrained
from vaezoo.cli import main
from vaezoo.errors import CheckpointError, VaezooError
from vaezoo.pretrained import CACHE, MIRROR, PACKAGED, Weights, manifest, weights_path

ENTRIES = list(manifest().values())
NAMES = [f"{entry.model}-{entry.data}" for entry in ENTRIES]
LARGEST = 12e6  # bytes of all weights in the package


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A model whose weights are on a mirror alone: entry, mirror and cache."""
    mirror, cache = tmp_path / "mirror", tmp_path / "cache"
    model = vaezoo.create("vae", latent_dim=3, network_options={"hidden": [8]}, image_shape=(1, 8, 8))
    file = vaezoo.save(model, mirror / "vae-dots.safetensors")
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    entry = Weights("vae", "dots", file.name, sha256, len(content), "Apache-2.0", {}, {})
    monkeypatch.setattr(pretrained, "manifest", lambda: {("vae", "dots"): entry})
    monkeypatch.setenv(CACHE, str(cache))
    monkeypatch.setenv(MIRROR, str(mirror))
    return model, entry, mirror, cache


def test_the_package_holds_the_weights_of_the_manifest_and_no_others():
    assert {path.name for path in PACKAGED.glob("*.safetensors")} == {entry.file for entry in ENTRIES}
    assert sum(entry.bytes for entry in ENTRIES) <= LARGEST


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_weights_are_those_that_were_measured(entry):
    content = (PACKAGED / entry.file).read_bytes()
    assert len(content) == entry.bytes
    assert hashlib.sha256(content).hexdigest() == entry.sha256


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_recorded_scores_are_found_again(entry, real_data):
    """On a tenth of the images, within four standard errors of both. The kernel distance is unbiased, so it
    can be compared between numbers of images."""
    data = vaezoo.load_data("sprites") if entry.data == "sprites" else real_data(entry.data)
    model = vaezoo.create(entry.model, pretrained=entry.data)
    assert not model.training
    report = vaezoo.evaluate(model, data, axes=["reconstruction", "sampling"], n=500, seed=1)
    for name in ("reconstruction/mse", f"sampling/kernel_distance_{entry.data}"):
        recorded, found = entry.scores[name], report[name]
        assert abs(found.value - recorded["value"]) < 4 * math.hypot(found.se, recorded["se"]), name


def test_models_with_weights_are_listed_and_described(capsys):
    listed = vaezoo.list_models(pretrained=True)
    assert listed == sorted({entry.model for entry in ENTRIES})
    assert vaezoo.list_models("*tc*", pretrained=True) == [name for name in listed if "tc" in name]
    assert "fashion_mnist" in vaezoo.describe("vae")["pretrained"]
    assert main(["list", "--pretrained"]) == 0
    output = capsys.readouterr().out
    assert all(entry.data in output and entry.model in output for entry in ENTRIES)
    assert main(["list", "no_such_*", "--pretrained"]) == 2


def test_weights_come_from_the_mirror_once_and_then_from_the_cache(elsewhere, monkeypatch):
    model, entry, mirror, cache = elsewhere
    found = vaezoo.create("vae", pretrained="dots", latent_dim=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, found.state_dict()[name])
    shutil.rmtree(mirror)
    assert weights_path(entry) == cache / entry.file
    monkeypatch.delenv(MIRROR)
    assert vaezoo.create("vae", pretrained="dots").config == model.config


def test_a_damaged_file_in_the_cache_is_fetched_anew(elsewhere):
    _, entry, mirror, cache = elsewhere
    cache.mkdir()
    (cache / entry.file).write_bytes((mirror / entry.file).read_bytes()[:-1])
    assert weights_path(entry).read_bytes() == (mirror / entry.file).read_bytes()


def test_another_file_under_the_same_name_is_refused(elsewhere):
    _, entry, mirror, cache = elsewhere
    vaezoo.save(vaezoo.create("ae", latent_dim=2, image_shape=(1, 8, 8)), mirror / entry.file)
    with pytest.raises(CheckpointError, match=r"not the file that the manifest names.*SHA-256"):
        weights_path(entry)
    assert not cache.exists()


def test_weights_that_are_nowhere_are_said_to_be(elsewhere, monkeypatch):
    _, entry, mirror, _ = elsewhere
    (mirror / entry.file).unlink()
    with pytest.raises(VaezooError, match=r"mirror .* has no vae-dots.safetensors"):
        weights_path(entry)
    monkeypatch.delenv(MIRROR)
    with pytest.raises(VaezooError, match=rf"neither in the package nor in .*; set {MIRROR} to a folder"):
        weights_path(entry)


def test_weights_come_from_a_repository_on_the_hub(elsewhere, monkeypatch):
    _, entry, mirror, _ = elsewhere
    asked = []
    monkeypatch.setattr(pretrained, "fetch", lambda *arguments: asked.append(arguments) or mirror)
    monkeypatch.setenv(MIRROR, "hf://someone/zoo")
    assert weights_path(entry).read_bytes() == (mirror / entry.file).read_bytes()
    assert asked == [("hf://someone/zoo", [entry.file])]


def test_what_does_not_go_with_the_weights_is_refused(elsewhere):
    with pytest.raises(VaezooError, match=r"latent_dim=4 does not go with pretrained='dots'.*latent_dim=3"):
        vaezoo.create("vae", pretrained="dots", latent_dim=4)
    with pytest.raises(VaezooError, match="unknown option of pretrained vae 'latent_dims'; did you mean"):
        vaezoo.create("vae", pretrained="dots", latent_dims=3)
    with pytest.raises(VaezooError, match="unknown pretrained weights of vae 'dot'; did you mean 'dots'"):
        vaezoo.create("vae", pretrained="dot")
    with pytest.raises(VaezooError, match=r"unknown pretrained weights of vq_vae 'dots'. Available: none"):
        vaezoo.create("vq_vae", pretrained="dots")


def test_training_goes_on_from_the_weights_without_a_new_start(elsewhere, tmp_path, capsys):
    """--init takes the name of pretrained weights or a run; both begin with exactly these weights."""
    model = elsewhere[0]
    torch.manual_seed(0)
    images = torch.rand(40, 1, 8, 8)
    torch.save(images, tmp_path / "unused.pt")
    folder = tmp_path / "images"
    folder.mkdir()
    from torchvision.utils import save_image

    for i, image in enumerate(images):
        save_image(image, folder / f"{i}.png")
    run = vaezoo.save(model, tmp_path / "run").parent
    # With so small a learning rate the weights stay where they begin.
    common = ["train", "vae", "--data", str(folder), "data.channels=1", "--epochs", "1", "--batch-size", "8"]
    for source, out in (("dots", "a"), (str(run), "b")):
        assert main([*common, "--lr", "1e-12", "--init", source, "--out", str(tmp_path / out)]) == 0
        trained = vaezoo.load(tmp_path / out)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(trained.state_dict()[name], value, atol=1e-8, rtol=0)
    capsys.readouterr()
    assert main([*common, "--init", str(run), "latent_dim=3", "--out", str(tmp_path / "c")]) == 2
    assert "has its own options, so 'latent_dim' cannot be given" in capsys.readouterr().err
    assert main([*common[:1], "ae", *common[2:], "--init", str(run), "--out", str(tmp_path / "c")]) == 2
    assert "holds a vae, not a ae" in capsys.readouterr().err
    assert main([*common, "--init", "dotz", "--out", str(tmp_path / "c")]) == 2
    assert "did you mean 'dots'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vq_vae", "vae"])
def test_only_new_weights_are_initialised_from_data(name, tmp_path):
    """k-means and pseudo-inputs would throw away what was learned."""
    options = {
        "vq_vae": {"codes": 8, "channels": 8, "residual_channels": 4, "decay": 0.999999, "revive": 0.0},
        "vae": {"prior": "vamp", "components": 5, "latent_dim": 2, "network_options": {"hidden": [8]}},
    }[name]
    torch.manual_seed(0)
    data = vaezoo.load_data((255 * torch.rand(60, 1, 8, 8)).byte())
    model = vaezoo.create(name, image_shape=(1, 8, 8), **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    quiet = {"epochs": 1, "batch_size": 16, "lr": 1e-12, "progress": False}

    def moved(state):
        return max(float((state[key] - before[key]).abs().max()) for key in before)

    vaezoo.train(model, data, **quiet)
    assert moved(model.state_dict()) > 1e-2, "new weights are initialised"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    vaezoo.train(vaezoo.load(vaezoo.save(model, tmp_path)), data, **quiet)
    again = vaezoo.load(tmp_path)
    vaezoo.train(again, data, **quiet)
    vaezoo.train(model, data, **quiet)
    for trained in (again, model):
        assert moved(trained.state_dict()) < 1e-3


def test_the_manifest_says_how_each_was_made():
    for entry in json.loads(pretrained.MANIFEST.read_text()):
        assert entry["recipe"]["train"]["epochs"] >= 1
        model = vaezoo.create(entry["model"], pretrained=entry["data"])
        if model.default_prior:
            assert entry["recipe"]["prior"]["name"] == model.default_prior
        assert model.sample(2).shape == (2, *model.config.image_shape)
