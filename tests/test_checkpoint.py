from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import vaezoo
from vaezoo.checkpoint import (
    WEIGHTS,
    describe_priors,
    prior_file,
    read_header,
    run_header,
    write_tensors,
    write_text,
)
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


def test_a_changed_byte_of_the_tensors_is_found_by_the_checksum(saved):
    content = bytearray(saved.read_bytes())
    content[-3] ^= 4
    saved.write_bytes(content)
    refused(saved, f"{saved} is damaged: by its checksum")


def test_a_header_that_says_something_else_is_found_by_the_checksum(saved):
    content = saved.read_bytes()
    assert content.count(b'\\"beta\\": 3.0') == 1
    saved.write_bytes(content.replace(b'\\"beta\\": 3.0', b'\\"beta\\": 4.0'))
    refused(saved, f"{saved} is damaged: by its checksum")


def test_the_same_model_is_the_same_file(saved):
    content = saved.read_bytes()
    for _ in range(5):
        assert vaezoo.save(vaezoo.load(saved), saved).read_bytes() == content


def test_files_from_before_there_were_checksums_load(saved):
    header, tensors = read_header(saved), safetensors.torch.load_file(saved)
    del header["checksum"]
    safetensors.torch.save_file(tensors, saved, metadata={"vaezoo": json.dumps(header)})
    model = vaezoo.load(saved)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name])


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
        ({"schema": 0}, "damaged header"),
        ({"schema": True}, "damaged header"),
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


def test_a_full_disk_leaves_the_previous_file(saved):
    """The system refuses every byte beyond a limit, as it does on a full disk."""
    content = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, hard))
    try:
        with pytest.raises(
            CheckpointError, match=rf"could not write {saved}: .*; the previous file.* intact"
        ):
            vaezoo.save(vaezoo.create("vae", **SMALL), saved)
        with pytest.raises(CheckpointError, match=r"could not write .*run\.json"):
            write_text(saved.parent / "run.json", "x" * len(content))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == content
    assert os.listdir(saved.parent) == [WEIGHTS]
    assert vaezoo.load(saved).config.beta == 3


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


# --- Priors beside a model ------------------------------------------------------------------------------


FITTED = {"gaussian_mixture": {"components": 2}, "flow": {"layers": 1, "hidden": 4, "depth": 1, "epochs": 1}}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A VAE in a run folder with two priors fitted one after the other, and copies of them as they were."""
    run = tmp_path_factory.mktemp("runs") / "vae"
    torch.manual_seed(0)
    model = vaezoo.create("vae", **SMALL).eval()
    x = torch.rand(200, 1, 8, 8)
    states = {"standard_normal": {}}
    for name, options in FITTED.items():
        vaezoo.fit_prior(model, x, name, out=run, device="cpu", progress=False, batch_size=32, **options)
        states[name] = {key: tensor.clone() for key, tensor in model.prior.state_dict().items()}
    return run, model, states


@pytest.fixture
def run(fitted, tmp_path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(fitted[0], tmp_path / "copy"))


@pytest.mark.parametrize("name", ["standard_normal", "gaussian_mixture", "flow"])
def test_every_prior_that_was_fitted_comes_back_with_the_model(fitted, name):
    run, model, states = fitted
    again = vaezoo.load(run, prior=name)
    assert type(again.prior).__module__.endswith(name)
    assert again.prior.fitted == (name in FITTED)
    assert not again.training
    assert again.prior.state_dict().keys() == states[name].keys()
    for key, tensor in again.prior.state_dict().items():
        assert torch.equal(tensor, states[name][key]), key
    for key, tensor in again.encoder.state_dict().items():
        assert torch.equal(tensor, model.encoder.state_dict()[key]), key
    for option, value in FITTED.get(name, {}).items():
        assert getattr(again.prior.config, option, value) == value
    z = torch.randn(5, 2)
    if name == "standard_normal":
        torch.testing.assert_close(
            again.prior.log_prob(z), torch.distributions.Normal(0, 1).log_prob(z).sum(1)
        )
    samples = [vaezoo.load(run, prior=name).sample(3, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*samples)


def test_the_model_itself_has_the_prior_that_was_fitted_last(fitted):
    run, _, states = fitted
    for key, tensor in vaezoo.load(run).prior.state_dict().items():
        assert torch.equal(tensor, states["flow"][key])
    trained = {name: run_header(run, name)[0]["info"]["prior_train"] for name in states}
    assert trained["flow"]["epochs"] == 1
    assert trained["gaussian_mixture"]["epochs"] != 1
    assert trained["standard_normal"] == {}, "that of another prior"
    assert describe_priors(run) == dict.fromkeys(("flow", "gaussian_mixture", "standard_normal"), "ready")


def test_a_prior_that_was_trained_with_the_model_is_not_lost_to_another(tmp_path):
    options = {"prior": "vamp", "components": 5, **SMALL}
    model = vaezoo.create("vae", **options).eval()
    expected, z = model.prior.pseudo_inputs.detach().clone(), torch.randn(4, 2)
    with torch.no_grad():
        density = model.prior.log_prob(z)
    x = torch.rand(100, 1, 8, 8)
    vaezoo.fit_prior(model, x, "gaussian_mixture", components=2, out=tmp_path, device="cpu")
    own = vaezoo.load(tmp_path, prior="vamp")
    assert not own.prior.fitted
    assert torch.equal(own.prior.pseudo_inputs, expected)
    with torch.no_grad():
        assert torch.equal(own.prior.log_prob(z), density)


def no_prior(run: Path, name: str, says: str) -> None:
    with pytest.raises(CheckpointError) as error:
        vaezoo.load(run, prior=name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_prior_that_is_not_there_names_those_that_are(run, saved):
    no_prior(run, "flwo", "'flwo'; did you mean 'flow'? Available: flow, gaussian_mixture, standard_normal;")
    no_prior(run, "../model", "Available: flow, gaussian_mixture, standard_normal; fit one with")
    no_prior(saved, "flow", "Available: standard_normal; fit one with vaezoo.fit_prior(..., out=...)")
    assert vaezoo.load(saved, prior="standard_normal").prior is not None


def test_a_prior_of_other_weights_is_refused(run):
    """After more training the latents are others. The priors that come with the new weights are theirs."""
    model = vaezoo.load(run, prior="standard_normal")
    with torch.no_grad():
        next(model.encoder.parameters())[0, 0] += 1e-6
    vaezoo.save(model, run)
    for name in FITTED:
        no_prior(run, name, f"fit the prior again: `vaezoo fit-prior {run} --prior {name}`")
        assert "belongs to other weights" in describe_priors(run)[name]
    assert vaezoo.load(run).prior.fitted is False


def test_a_prior_alone_is_no_model(run):
    with pytest.raises(CheckpointError, match=r"is a prior without its model.*prior='flow'"):
        vaezoo.load(prior_file(run, "flow"))


@pytest.mark.parametrize("name", sorted(FITTED))
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_truncated_prior(run, name, share):
    if name == "flow":  # the other one within the model's file
        vaezoo.save(vaezoo.load(run, prior="gaussian_mixture"), run)
    file = prior_file(run, name)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    no_prior(run, name, "damaged or not a safetensors file")


def test_flipped_bytes_in_the_header_of_a_prior(run):
    """Whatever byte of the header is hit: an error of ours, or a model."""
    file = prior_file(run, "gaussian_mixture")
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    refusals = 0
    for position in [*range(8), *range(8, 8 + length, 5)]:
        for mask in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= mask
            file.write_bytes(damaged)
            try:
                vaezoo.load(run, prior="gaussian_mixture")
            except CheckpointError:
                refusals += 1
    assert refusals > length / 5


MIXTURE = {"name": "gaussian_mixture", "config": {"components": 2}, "fitted": True}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prior": {**MIXTURE, "name": "nothing"}}, "unknown prior 'nothing'"),
        ({"prior": {**MIXTURE, "name": ["flow"]}}, "cannot be loaded"),
        (
            {"prior": {**MIXTURE, "config": {"components": 3}}},
            "gaussian_mixture.safetensors does not fit its own",
        ),
        ({"prior": {**MIXTURE, "config": {"widht": 3}}}, "unknown option of gaussian_mixture 'widht'"),
        ({"prior": {**MIXTURE, "config": 7}}, "cannot be loaded"),
        ({"prior": {**MIXTURE, "fitted": False}}, "does not have the prior 'gaussian_mixture'"),
        ({"prior": {"name": "gaussian_mixture"}}, "'config'"),
        ({"prior": {"name": "transformer", "config": {}}}, "is a prior over code grids"),
        ({"prior": None}, "damaged header"),
        ({"prior": "flow"}, "damaged header"),
        ({"info": []}, "damaged header"),
        ({"weights": None}, "belongs to other weights"),
        ({"weights": {}}, "belongs to other weights"),
        ({"schema": 99}, "has schema 99"),
    ],
)
def test_headers_of_priors_that_do_not_fit(run, changes, says):
    rewrite(prior_file(run, "gaussian_mixture"), **changes)
    no_prior(run, "gaussian_mixture", says)


@pytest.mark.parametrize("components", [10**7, 10**15, 10**30])
def test_a_prior_that_claims_to_be_huge_allocates_nothing(run, components):
    claim = {**MIXTURE, "config": {"components": components}}
    rewrite(prior_file(run, "gaussian_mixture"), prior=claim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    no_prior(run, "gaussian_mixture", "")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_nothing_in_a_prior_is_executed(run, tmp_path):
    mark = tmp_path / "executed"
    prior_file(run, "gaussian_mixture").write_bytes(pickle.dumps(Bomb(mark)))
    no_prior(run, "gaussian_mixture", "damaged or not a safetensors file")
    assert not mark.exists()


def test_fingerprints_tell_weights_apart_and_leave_the_prior_out(saved):
    from vaezoo.checkpoint import fingerprint, weights_fingerprint

    a = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(3)}
    others = [
        {**a, "x": torch.tensor([1.0, 2.0000002])},
        {**a, "x": torch.tensor([[1.0, 2.0]])},
        {**a, "x": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"z": a["x"], "y": a["y"]},
        {"x": a["x"]},
    ]
    assert len({fingerprint(tensors) for tensors in (a, *others)}) == 1 + len(others)
    assert fingerprint({"y": a["y"], "x": a["x"].clone()}) == fingerprint(a)
    assert weights_fingerprint({**a, "prior.x": a["x"]}) == weights_fingerprint(a) == fingerprint(a)
