from __future__ import annotations

import json
import os
import pickle
import resource
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import vaezoo
from vaezoo.checkpoint import WEIGHTS, read_header, write_tensors, write_text
from vaezoo.errors import CheckpointError, VaezooError

SMALL = {"image_shape": (1, 8, 8), "latent_dim": 2, "network_options": {"hidden": [8]}}


@pytest.fixture
def saved(tmp_path) -> Path:
    return vaezoo.save(vaezoo.create("beta_vae", beta=3, **SMALL), tmp_path / "run")


def rewrite(path: Path, **changes) -> None:
    """The same tensors under a changed header."""
    header = {**read_header(path), **changes}
    write_tensors(path, safetensors.torch.load_file(path), header)


def refused(path: Path, says: str, **modules: nn.Module) -> str:
    with pytest.raises(CheckpointError) as error:
        vaezoo.load(path, **modules)
    text = str(error.value)
    assert says in text
    assert "\n" not in text
    return text


def test_save_and_load_by_folder_and_by_file(tmp_path):
    model = vaezoo.create("beta_vae", beta=3, **SMALL)
    assert vaezoo.save(model, tmp_path, {"note": "é"}) == tmp_path / WEIGHTS
    assert vaezoo.save(model, tmp_path / "sub" / "b.safetensors") == tmp_path / "sub" / "b.safetensors"
    for path in (tmp_path, tmp_path / WEIGHTS, str(tmp_path / "sub" / "b.safetensors")):
        again = vaezoo.load(path)
        assert again.config == model.config
        assert not again.training
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)
    assert read_header(tmp_path / WEIGHTS)["info"] == {"note": "é"}


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    refused(saved, "damaged or not a safetensors file")


def test_flipped_bytes_in_the_header(saved):
    """Whatever byte of the header is hit: an error of ours, or a model."""
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    refusals = 0
    for position in [*range(8), *range(8, 8 + length, 7)]:
        for mask in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= mask
            saved.write_bytes(damaged)
            try:
                vaezoo.load(saved)
            except CheckpointError:
                refusals += 1
    assert refusals > length / 7


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_nothing_in_the_file_is_executed(tmp_path, how):
    path, mark = tmp_path / WEIGHTS, tmp_path / "executed"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(Bomb(mark), path)
    refused(path, "damaged or not a safetensors file")
    assert not mark.exists()


def test_foreign_files(tmp_path):
    path = tmp_path / WEIGHTS
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    refused(path, "vaezoo did not write it")
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata={"vaezoo": "no json"})
    refused(path, "damaged header")
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata={"vaezoo": "[" * 100_000})
    refused(path, "damaged header")
    for header in ([], {}, {"schema": "1"}):
        safetensors.torch.save_file({"w": torch.zeros(3)}, path, metadata={"vaezoo": json.dumps(header)})
        refused(path, "damaged header")
    refused(tmp_path / "nothing", f"no checkpoint at {tmp_path / 'nothing' / WEIGHTS}")
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "folder.safetensors", "damaged or not a safetensors file")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "beta_vea"}, "unknown model 'beta_vea'; did you mean 'beta_vae'?"),
        ({"model": 5}, "cannot be loaded"),
        ({"model": None}, "cannot be loaded"),
        ({"config": {**SMALL, "betta": 3}}, "unknown option of beta_vae 'betta'; did you mean 'beta'?"),
        ({"config": {**SMALL, "name": "vae"}}, "cannot be loaded"),
        ({"config": {**SMALL, "encoder": "os.system"}}, "encoder='os.system' is not valid"),
        ({"config": [1]}, "cannot be loaded"),
        ({"config": {**SMALL, "latent_dim": -5}}, "latent_dim=-5 is not valid"),
        ({"prior": {"name": "nothing", "config": {}}}, "unknown prior 'nothing'"),
        ({"prior": {"name": "gaussian_mixture"}}, "cannot be loaded"),
        (
            {"prior": {"name": "gaussian_mixture", "config": {}, "fitted": True}},
            "tensor 'prior.cholesky' is missing in the file",
        ),
        ({"prior": {"name": "transformer", "config": {}}}, "TransformerPrior is a prior over code grids"),
        (
            {"schema": 99, "vaezoo": "7.0"},
            "has schema 99, this version of vaezoo reads up to 1; it was written by vaezoo 7.0",
        ),
    ],
)
def test_headers_that_do_not_fit(saved, changes, says):
    rewrite(saved, **changes)
    refused(saved, says)


@pytest.mark.parametrize("missing", ["model", "config", "prior"])
def test_header_without_a_part(saved, missing):
    header = read_header(saved)
    del header[missing]
    write_tensors(saved, safetensors.torch.load_file(saved), header)
    refused(saved, f"'{missing}'")


@pytest.mark.parametrize(
    "claim",
    [
        {"latent_dim": 10**9},
        {"latent_dim": 10**15},
        {"latent_dim": 10**30},
        {"image_shape": (1, 10**6, 10**6)},
    ],
    ids=str,
)
def test_a_header_that_claims_a_huge_model_allocates_nothing(saved, claim):
    rewrite(saved, config={**SMALL, **claim})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(saved, "")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_tensors_that_are_missing_too_many_or_of_another_shape(saved):
    header, tensors = read_header(saved), safetensors.torch.load_file(saved)
    first = sorted(tensors)[0]
    write_tensors(saved, {k: v for k, v in tensors.items() if k != first}, header)
    refused(saved, f"tensor '{first}' is missing in the file")
    write_tensors(saved, {**tensors, "extra": torch.zeros(2)}, header)
    refused(saved, "tensor 'extra' is (2,) in the file and absent in the model")
    write_tensors(saved, {**tensors, first: torch.zeros(2, 2)}, header)
    refused(saved, f"tensor '{first}' is (2, 2) in the file")


def test_modules_of_ones_own_are_needed_again(tmp_path):
    def encoder():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 4))

    model = vaezoo.create("vae", encoder=encoder(), **SMALL)
    vaezoo.save(model, tmp_path)
    refused(tmp_path, "vaezoo.load(path, encoder=..., decoder=...)")
    refused(tmp_path, "unknown option of vae 'encodr'; did you mean 'encoder'", encodr=encoder())
    again = vaezoo.load(tmp_path, encoder=encoder())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


def test_a_failure_while_writing_leaves_the_previous_file(saved, monkeypatch):
    content = saved.read_bytes()

    def broken(tensors, path, metadata):
        Path(path).write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr("vaezoo.checkpoint.save_file", broken)
    with pytest.raises(
        CheckpointError, match="no space left on device; the previous file, if any, is intact"
    ):
        vaezoo.save(vaezoo.create("vae", **SMALL), saved)
    assert saved.read_bytes() == content
    assert os.listdir(saved.parent) == [WEIGHTS]


@pytest.mark.parametrize("when", ["replace", "fsync"])
def test_an_interruption_while_writing_leaves_the_previous_file(saved, monkeypatch, when):
    content = saved.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, when, interrupted)
        with pytest.raises(KeyboardInterrupt):
            vaezoo.save(vaezoo.create("vae", **SMALL), saved)
        with pytest.raises(KeyboardInterrupt):
            write_text(saved.parent / "run.json", "{}")
    assert saved.read_bytes() == content
    assert os.listdir(saved.parent) == [WEIGHTS]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not write"):
        vaezoo.save(vaezoo.create("vae", **SMALL), tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match="could not write"):
        write_text(tmp_path / "file" / "run.json", "")


def test_headers_are_plain_json(saved):
    header = read_header(saved)
    assert header["model"] == "beta_vae"
    assert header["config"]["beta"] == 3
    assert header["prior"] == {"name": "standard_normal", "config": {}, "fitted": False}
    assert header["vaezoo"] == vaezoo.__version__
    with pytest.raises(VaezooError):
        read_header(saved.parent / "other.safetensors")
