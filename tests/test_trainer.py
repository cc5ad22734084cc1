"""The loop: exact resume, named failures, selection on validation, averages over samples, schedules."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from bars import bars
from PIL import Image
from torch import nn

import vaezoo
from vaezoo.checkpoint import (
    REPORT,
    WEIGHTS,
    prior_file,
    prior_folder,
    read_header,
    read_tensors,
    write_tensors,
)
from vaezoo.cli import main
from vaezoo.config import BaseConfig
from vaezoo.data import ImageData, Loader, ResidentSplit
from vaezoo.errors import CheckpointError, DataError, Terminated, TrainingError, VaezooError
from vaezoo.latents import CODES, Latents, encode_all, encode_data
from vaezoo.objective import Loss, Progress
from vaezoo.priors import PRIORS, Labelled, Prior
from vaezoo.random import seeded
from vaezoo.run import METRICS, STATE, GroupConfig, TrainConfig, environment
from vaezoo.trainer import CUBLAS_WORKSPACE, _autocast, lr_factor, make_optimizers, normalize_gradients

MODELS = ["ae", "vae", "beta_vae", "beta_tc_vae", "factor_vae", "conv_vae", "vq_vae", "vq_vae2"]

#: The priors that the loop trains, each with a model that it goes with and options that make it small.
TRAINED_PRIORS = {
    "flow": ("vae", {"hidden": 8}),
    "two_stage": ("vae", {"hidden": 8}),
    "pixelcnn": ("vq_vae", {"width": 8, "layers": 1}),
    "pixelsnail": ("vq_vae2", {"width": 8, "blocks": 1, "layers": 1, "heads": 1}),
    "transformer": ("vq_vae", {"width": 8, "depth": 1, "heads": 1}),
}


@pytest.fixture(scope="module")
def images():
    return bars()


@pytest.fixture(scope="module")
def data(images):
    return vaezoo.load_data(images)


def small(name="vae", seed=0):
    torch.manual_seed(seed)
    tiny = {
        "factor_vae": {"discriminator_width": 16, "discriminator_depth": 2},
        "conv_vae": {"network_options": {"channels": [4, 4], "hidden": 8}},
        "vq_vae": {"codes": 8, "code_dim": 4, "channels": 4, "residual_channels": 2},
        "vq_vae2": {"codes": 8, "code_dim": 4, "channels": 4, "residual_channels": 2},
    }
    mlp = {"latent_dim": 3, "network_options": {"hidden": [16]}}
    options = {**({} if name.startswith("vq") else mlp), **tiny.get(name, {})}
    return vaezoo.create(name, image_shape=(1, 8, 8), **options)


def train(model, data, **options):
    defaults = {"batch_size": 32, "epochs": 3, "lr_schedule": "constant", "device": "cpu"}
    return vaezoo.train(model, data, progress=False, **{**defaults, **options})


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"'{name}' differs"


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_validation_loss(name, data):
    run = train(small(name), data, epochs=8, lr=5e-3)
    losses = [line["validation/loss"] for line in run.history if "validation/loss" in line]
    assert len(losses) == 8
    assert run.best_loss == min(losses) < losses[0]


def test_same_seed_same_run_other_seed_other_run(data):
    runs = [train(small(), data, seed=seed) for seed in (1, 1, 2)]
    assert_same(weights(runs[0].model), weights(runs[1].model))
    assert runs[0].history == runs[1].history
    assert runs[0].history != runs[2].history


def test_the_users_random_state_is_left_alone(data):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(small(seed=7), data, epochs=1)
    torch.manual_seed(7)
    model = small(seed=7)
    state = torch.get_rng_state()
    train(model, data, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), expected)


class StopAt:
    """A signal, by default that of Ctrl-C, in the middle of the run, at a chosen step."""

    def __init__(self, model, step, signals=(signal.SIGINT,)):
        self.losses, self.step, self.signals = model.losses, step, signals

    def __call__(self, x, progress):
        if int(progress.step) == self.step and torch.is_grad_enabled():
            for number in self.signals:
                os.kill(os.getpid(), number)
        return self.losses(x, progress)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("step", [3, 8, 13])
def test_resume_is_invisible(name, step, data, tmp_path):
    """Interrupted mid-epoch and resumed: the same weights, optimiser state and log, to the bit."""
    options = {"weight_ema": 0.9, "lr_schedule": "cosine", "log_steps": 4}
    train(small(name), data, out=tmp_path / "whole", **options)
    model = small(name)
    model.losses = StopAt(model, step)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step + 1}.*--resume"):
        train(model, data, out=tmp_path / "parts", **options)
    train(small(name, seed=99), data, out=tmp_path / "parts", resume=True, **options)
    for file in (WEIGHTS, STATE):
        assert_same(read_tensors(tmp_path / "whole" / file), read_tensors(tmp_path / "parts" / file))
    assert (tmp_path / "whole" / METRICS).read_text() == (tmp_path / "parts" / METRICS).read_text()


def test_sigterm_is_a_ctrl_c_that_exits_with_143(data, tmp_path):
    """As schedulers send it before they kill. Handlers are put back; a second signal does not wait."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    whole = train(small(), data)
    model = small()
    model.losses = StopAt(model, 9, [signal.SIGTERM])
    with pytest.raises(SystemExit, match=r"stopped after step 10 of 21; go on with .*--resume") as stopped:
        train(model, data, out=tmp_path)
    assert isinstance(stopped.value, Terminated)
    assert stopped.value.code == 143
    assert read_header(tmp_path / STATE)["step"] == 10
    for second, error in ((signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)):
        model = small()
        model.losses = StopAt(model, 15, [signal.SIGTERM, second])
        with pytest.raises(error, match="within a step"):
            train(model, data, out=tmp_path, resume=True)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    run = train(small(seed=99), data, out=tmp_path, resume=True)
    assert_same(weights(run.model), weights(whole.model))


def test_an_option_that_is_newer_than_the_state_had_its_default(data, tmp_path):
    train(small(), data, out=tmp_path, epochs=1)
    header, tensors = read_header(tmp_path / STATE), read_tensors(tmp_path / STATE)
    del header["train"]["normalize_gradients"], header["train"]["groups"]
    write_tensors(tmp_path / STATE, tensors, header)
    with pytest.raises(CheckpointError, match=r"other options \(normalize_gradients\)"):
        train(small(), data, out=tmp_path, epochs=2, resume=True, normalize_gradients=True)
    run = train(small(), data, out=tmp_path, epochs=2, resume=True)
    assert_same(weights(run.model), weights(train(small(), data, epochs=2).model))


def test_prior_training_resumes_exactly(data, tmp_path):
    model = small("vq_vae")
    options = {
        "batch_size": 32,
        "epochs": 2,
        "width": 8,
        "depth": 1,
        "heads": 1,
        "progress": False,
        "device": "cpu",
    }
    vaezoo.fit_prior(model, data, out=tmp_path / "whole", **options)
    whole = weights(model)
    from vaezoo.priors.transformer import TransformerPrior

    original = TransformerPrior.losses
    try:
        TransformerPrior.losses = lambda self, z, progress: StopAt(_Bound(original, self), 5)(z, progress)
        with pytest.raises(KeyboardInterrupt):
            vaezoo.fit_prior(model, data, out=tmp_path / "parts", **options)
    finally:
        TransformerPrior.losses = original
    vaezoo.fit_prior(model, data, out=tmp_path / "parts", resume=True, **options)
    assert_same(weights(model), whole)


class _Bound:
    def __init__(self, function, owner):
        self.losses = lambda z, progress: function(owner, z, progress)


def test_resume_refuses_another_model_or_other_data(data, images, tmp_path):
    train(small("beta_vae"), data, out=tmp_path, epochs=1)
    other = vaezoo.create(
        "beta_vae", image_shape=(1, 8, 8), latent_dim=3, network_options={"hidden": [16]}, beta=50
    )
    with pytest.raises(CheckpointError, match=r"other options \(config\)"):
        train(other, data, out=tmp_path, epochs=2, resume=True)
    with pytest.raises(CheckpointError, match=r"other options \(data\)"):
        train(small("beta_vae"), 255 - images, out=tmp_path, epochs=2, resume=True)


def test_a_prior_is_refitted_to_new_latents_and_never_resumed_on_them(data, tmp_path):
    common = {"progress": False, "device": "cpu", "batch_size": 32, "epochs": 1}
    options = {"width": 8, "depth": 1, "heads": 1, **common}
    model = small("vq_vae")
    train(model, data, out=tmp_path, epochs=1)
    first = vaezoo.fit_prior(model, data, out=tmp_path, **options)
    train(model, data, out=tmp_path, epochs=2, resume=True)
    with pytest.raises(CheckpointError, match="latents"):
        vaezoo.fit_prior(model, data, out=tmp_path, resume=True, **options)
    second = vaezoo.fit_prior(model, data, out=tmp_path, **options)
    assert first.steps == second.steps > 0
    assert second.history != first.history


def test_an_early_stopped_run_stays_stopped(data, tmp_path):
    options = {"epochs": 50, "lr": 1e-12, "patience": 2, "out": tmp_path}
    stopped = train(small(), data, **options)
    again = train(small(), data, resume=True, **options)
    assert again.steps == stopped.steps < 50 * 7
    assert_same(weights(again.model), weights(stopped.model))


def test_state_is_written_within_an_epoch(data, tmp_path):
    """With no time between checkpoints, a run that dies mid-epoch has the state of the step before."""
    model = small()
    model.losses = Crash(model, 5)
    with pytest.raises(RuntimeError, match="power cut"):
        train(model, data, out=tmp_path, checkpoint_seconds=0)
    run = train(small(), data, out=tmp_path, resume=True)
    assert run.steps == 21
    whole = train(small(), data)
    assert_same(weights(run.model), weights(whole.model))


def test_the_last_states_are_kept_and_a_run_goes_on_from_each(data, tmp_path):
    whole = train(small(), data)
    options = {"out": tmp_path, "checkpoint_seconds": 0, "keep_last": 3}
    train(small(), data, **options)
    kept = sorted(tmp_path.glob("state-*"))
    assert [file.name for file in kept] == [f"state-{step:09}.safetensors" for step in (19, 20, 21)]
    assert [read_header(file)["step"] for file in kept] == [19, 20, 21]
    kept[0].replace(tmp_path / STATE)
    run = train(small(), data, resume=True, **{**options, "keep_last": 2})
    assert_same(weights(run.model), weights(whole.model))
    assert sorted(tmp_path.glob("state-*")) == kept[1:]
    (tmp_path / STATE).unlink()
    train(small(), data, epochs=1, out=tmp_path)
    assert not list(tmp_path.glob("state-*")), "of the run that was there before"


def test_a_damaged_state_is_refused_by_its_name(data, tmp_path):
    train(small(), data, out=tmp_path, epochs=1)
    content = bytearray((tmp_path / STATE).read_bytes())
    content[-1] ^= 1
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{tmp_path / STATE} is damaged: by its checksum"):
        train(small(), data, out=tmp_path, epochs=2, resume=True)


def test_a_full_disk_stops_the_run_and_leaves_the_last_state(data, tmp_path):
    """No room for weights and state, then not even for a line of the log; with more, the run goes on."""
    options = {"checkpoint_seconds": 0, "log_steps": 1}
    whole = train(small(), data, out=tmp_path / "whole", **options)
    for number, (limit, says) in enumerate([(4096, "safetensors"), (400, "metrics.jsonl")]):
        out, model = tmp_path / str(number), small()
        model.losses = FullDisk(model, 9, limit)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            with pytest.raises(CheckpointError, match=f"could not write .*{says}.* intact"):
                train(model, data, out=out, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert read_header(out / STATE)["step"] == 9
        run = train(small(), data, out=out, resume=True, **options)
        assert_same(weights(run.model), weights(whole.model))
        assert (out / METRICS).read_text() == (tmp_path / "whole" / METRICS).read_text()


class FullDisk:
    """From a step on, no file may be larger than `limit` bytes."""

    def __init__(self, model, step, limit):
        self.losses, self.step, self.limit = model.losses, step, limit

    def __call__(self, x, progress):
        if int(progress.step) == self.step and torch.is_grad_enabled():
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, hard))
        return self.losses(x, progress)


def test_a_run_that_dies_before_any_of_its_writes_loses_nothing(data, tmp_path, monkeypatch):
    """Also between the state of the last step and the best weights."""
    options = {"epochs": 1, "checkpoint_seconds": 0}
    whole = train(small(), data, out=tmp_path / "whole", **options)
    for fatal in range(2, 9):  # seven states and, with the last, the best weights
        written = []

        def write(path, *rest, fatal=fatal, written=written):
            written.append(path)
            if len(written) == fatal:
                raise RuntimeError("power cut")
            write_tensors(path, *rest)

        out = tmp_path / str(fatal)
        with monkeypatch.context() as patch:
            patch.setattr("vaezoo.run.write_tensors", write)
            with pytest.raises(RuntimeError, match="power cut"):
                train(small(), data, out=out, **options)
        train(small(seed=99), data, out=out, resume=True, **options)
        assert_same(weights(vaezoo.load(out)), weights(whole.model))


class Crash:
    """A run that dies at a step."""

    def __init__(self, model, step):
        self.losses, self.step = model.losses, step

    def __call__(self, x, progress):
        if int(progress.step) == self.step and torch.is_grad_enabled():
            raise RuntimeError("power cut")
        return self.losses(x, progress)


def test_a_refused_run_leaves_the_prior(data, tmp_path):
    model = small("ae")
    train(model, data, out=tmp_path, epochs=1)
    vaezoo.fit_prior(model, data, components=2, device="cpu")
    with pytest.raises(VaezooError, match="already holds a run"):
        train(model, data, out=tmp_path)
    assert model.prior is not None


def test_weight_average_starts_after_the_initialisation(data):
    """Of the k-means start, not of the random codebook before it."""
    model = small("vq_vae2")
    model = vaezoo.create("vq_vae", image_shape=(1, 8, 8), codes=8, code_dim=4, channels=4, ema=False)
    started = []
    initialize = model.initialize

    def spy(x):
        initialize(x)
        started.append(model.codebook(0).vectors.detach().clone())

    model.initialize = spy
    train(model, data, epochs=1, lr=1e-9, weight_ema=0.999)
    torch.testing.assert_close(model.codebook(0).vectors.detach(), started[0], rtol=0, atol=1e-4)


def test_resume_refuses_other_options_and_an_empty_folder(data, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(small(), data, out=tmp_path, resume=True)
    train(small(), data, out=tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=r"other options \(lr\)"):
        train(small(), data, out=tmp_path, epochs=1, lr=0.5, resume=True)
    with pytest.raises(CheckpointError, match=r"other options \(model, config\)"):
        train(small("conv_vae"), data, out=tmp_path, epochs=1, resume=True)
    with pytest.raises(VaezooError, match="already holds a run"):
        train(small(), data, out=tmp_path, epochs=1)
    with pytest.raises(VaezooError, match="needs the run folder"):
        train(small(), data, resume=True)


def test_a_longer_run_goes_on_from_a_shorter_one(data, tmp_path):
    train(small(), data, out=tmp_path / "parts", epochs=1)
    train(small(), data, out=tmp_path / "parts", epochs=3, resume=True)
    whole = train(small(), data, out=tmp_path / "whole", epochs=3)
    assert_same(read_tensors(tmp_path / "parts" / WEIGHTS), read_tensors(tmp_path / "whole" / WEIGHTS))
    assert whole.steps == 3 * 7  # 243 training images in batches of 32, the rest of each epoch left out


@pytest.mark.parametrize("before", [False, True])
def test_deterministic_holds_within_the_run_and_is_put_back(before, data, monkeypatch):
    """On the CPU it changes no number. It ends with the run, also with one that fails."""
    if before:
        monkeypatch.setenv(CUBLAS_WORKSPACE, ":16:8")
    else:
        monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)

    def settings():
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            os.environ.get(CUBLAS_WORKSPACE),
        )

    seen, outside = set(), settings()

    class Spy(Crash):
        def __call__(self, x, progress):
            seen.add(settings())
            return super().__call__(x, progress)

    runs = []
    for deterministic in (False, True):
        model = small("vq_vae")
        model.losses = Spy(model, -1)
        runs.append(train(model, data, deterministic=deterministic, epochs=1))
        assert settings() == outside
    assert seen == {outside, (True, False, False, ":16:8" if before else ":4096:8")}
    assert_same(weights(runs[0].model), weights(runs[1].model))
    model.losses = Crash(small(), 3)
    with pytest.raises(RuntimeError, match="power cut"):
        train(model, data, deterministic=True)
    assert settings() == outside


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_deterministic_runs_are_the_same_on_cuda(name, data):
    options = {"device": "cuda", "deterministic": True}
    runs = [train(small(name), data.to("cuda"), **options) for _ in range(2)]
    assert_same(weights(runs[0].model), weights(runs[1].model))
    assert runs[0].history == runs[1].history


class Poisoned:
    """A model whose rate becomes NaN at a step."""

    def __init__(self, model, step):
        self.losses, self.step = model.losses, step

    def __call__(self, x, progress):
        loss = self.losses(x, progress)["model"]
        bad = torch.where((progress.step >= self.step) & torch.is_grad_enabled(), math.nan, 1.0)
        terms = {**loss.terms, "rate": loss.terms["rate"] * bad}
        return {"model": Loss(loss.total * bad, terms)}


def test_nan_stops_the_run_names_the_term_and_keeps_the_best_weights(data, tmp_path):
    model = small()
    model.losses = Poisoned(model, 17)
    with pytest.raises(
        TrainingError, match=r"loss term 'rate' became nan at step 17 \(epoch 3\).*best weights"
    ):
        train(model, data, out=tmp_path, epochs=5)
    kept = vaezoo.load(tmp_path)
    assert all(p.isfinite().all() for p in kept.parameters())
    good = small()
    train(good, data, epochs=2)
    assert_same(weights(kept), weights(good))


def test_out_of_memory_says_what_to_lower_and_keeps_the_best_weights(data, tmp_path):
    class Full(Crash):
        def __call__(self, x, progress):
            if int(progress.step) == self.step and torch.is_grad_enabled():
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.\nMore.")
            return self.losses(x, progress)

    model = small()
    model.losses = Full(model, 17)
    with pytest.raises(TrainingError) as error:
        train(model, data, out=tmp_path)
    said = str(error.value)
    for part in ("step 17", "lower batch_size", "batch_size=32", "bf16", "of step 14, are in", "7 GiB"):
        assert part in said
    assert "\n" not in said
    assert_same(weights(vaezoo.load(tmp_path)), weights(train(small(), data, epochs=2).model))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["size", "bytes"])
def test_an_image_that_is_broken_during_the_run_is_named(images, workers, damage, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for i, image in enumerate(images[:60]):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:02}.png")
    data = vaezoo.load_data(folder, channels=1, memory_limit_gb=0)
    broken = data.train._files.open(len(data.train) // 2)
    model = small("ae")

    class Break(Crash):
        def __call__(self, x, progress):
            if int(progress.step) == self.step and torch.is_grad_enabled():
                if damage == "size":
                    Image.new("L", (9, 8)).save(broken)
                else:
                    broken.write_bytes(broken.read_bytes()[:60])
            return self.losses(x, progress)

    options = {"batch_size": 8, "epochs": 5, "workers": workers}
    model.losses = Break(model, 11)
    with pytest.raises(DataError) as error:
        train(model, data, out=out, **options)
    assert str(error.value).startswith(str(broken))
    assert "\n" not in str(error.value)
    assert all(p.isfinite().all() for p in vaezoo.load(out).parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_single_image_of_each_split_is_enough(name, images, tmp_path):
    data = vaezoo.load_data(images[:3])
    assert [len(split) for split in data.splits.values()] == [1, 1, 1]
    with pytest.raises(DataError, match="batch_size=128 is more than the 1 images of the split"):
        train(small(name), data, batch_size=128)
    run = train(small(name), data, batch_size=1, epochs=2, out=tmp_path)
    assert math.isfinite(run.best_loss)
    with pytest.raises(DataError, match="of 1 images leaves none for train"):
        train(small(name), images[:1])


def test_validation_counts_every_image_once(data):
    """Trap 7: losses of the first batch only, or of a last batch weighed like a full one."""
    model = small("ae")
    runs = [train(small("ae"), data, epochs=1, lr=1e-12, batch_size=size) for size in (27, 10)]
    x = data.validation.batch(torch.arange(len(data.validation)))
    with torch.no_grad():
        expected = model.losses(x, None)["model"].total.item()
    assert len(data.validation) % 10, "the last batch must be smaller than the others"
    for run in runs:
        assert run.best_loss == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_advance_anything(data):
    """Trap 7: schedules, codebooks or seeds that move because validation ran."""
    seen = []

    class Spy:
        def __init__(self, model):
            self.losses = model.losses

        def __call__(self, x, progress):
            seen.append((float(progress.step), torch.is_grad_enabled()))
            return self.losses(x, progress)

    model = small("vq_vae")
    model.losses = Spy(model)
    train(model, data, epochs=2)
    training = [step for step, grad in seen if grad]
    assert training == list(range(14))
    assert {step for step, grad in seen if not grad} == {14.0}, "validation is at the end of all schedules"


def test_early_stopping(data):
    run = train(small(), data, epochs=50, lr=1e-12, patience=3)
    assert run.steps < 50 * 7
    assert run.steps - run.best_step >= 3 * 7


@pytest.mark.parametrize(
    ("after", "late", "end"), [(0, None, 4), (0, 4, 7), (2, None, 5), (2, 5, 8), (5, None, 8), (5, 3, 8)]
)
def test_patience_counts_from_an_epoch_on(after, late, end, data, tmp_path, monkeypatch):
    """Validation is best after the first epoch, or again after epoch `late`. A run that is interrupted in the
    epoch before its last ends where one does that is not."""
    options = {"epochs": 50, "patience": 3, "patience_after": after}
    losses, epoch = {1: 1.0, late: 0.5}, 0

    def validate(*_):
        nonlocal epoch
        epoch += 1
        return {"loss": losses.get(epoch, 2.0)}

    monkeypatch.setattr("vaezoo.trainer.validate", validate)
    run = train(small(), data, **options)
    assert (run.best_step, run.steps) == (7 * (late or 1), 7 * end)
    epoch, model = 0, small()
    model.losses = StopAt(model, 7 * end - 10)
    with pytest.raises(KeyboardInterrupt):
        train(model, data, out=tmp_path, **options)
    resumed = train(small(), data, out=tmp_path, resume=True, **options)
    assert (resumed.best_step, resumed.steps) == (run.best_step, run.steps)


def test_the_best_weights_are_kept_not_the_last(data):
    run = train(small("ae"), data, epochs=6, lr=0.3)
    losses = [line["validation/loss"] for line in run.history if "validation/loss" in line]
    assert run.best_loss == min(losses)
    x = data.validation.batch(torch.arange(len(data.validation)))
    with torch.no_grad():
        assert run.model.losses(x, None)["model"].total.item() == pytest.approx(run.best_loss, rel=1e-5)


def test_weight_average_is_the_exponential_mean(data):
    """With validation every epoch, the kept weights are the average of those after each step."""
    model, trail = small("ae"), []
    start = [p.detach().clone() for p in model.parameters()]
    original = model.losses

    def spy(x, progress):
        if torch.is_grad_enabled():
            trail.append([p.detach().clone() for p in model.parameters()])
        return original(x, progress)

    model.losses = spy
    train(model, data, epochs=1, weight_ema=0.5)
    plain = small("ae")
    train(plain, data, epochs=1)
    trail.append([p.detach().clone() for p in plain.parameters()])
    average = start
    for step, parameters in enumerate(trail[1:]):
        decay = min(0.5, (1 + step) / (10 + step))
        average = [torch.lerp(a, p, 1 - decay) for a, p in zip(average, parameters)]
    for expected, found in zip(average, model.parameters()):
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)


def test_learning_rate_schedule():
    cosine = TrainConfig(lr_schedule="cosine", lr_warmup_steps=10)
    assert lr_factor(0, 1000, cosine) == pytest.approx(1 / 11, rel=1e-3)
    assert lr_factor(500, 1000, cosine) == pytest.approx(0.5)
    assert lr_factor(999, 1000, cosine) < 1e-4
    assert lr_factor(7, 1000, TrainConfig()) == 1.0


def test_clipping_bounds_the_gradient(data, monkeypatch):
    norms = {}
    for clip in (None, 1e-3):
        model = small("ae")
        seen = norms.setdefault(clip, [])
        parameters = list(model.parameters())
        step = torch.optim.AdamW.step

        def spy(self, *args, step=step, parameters=parameters, seen=seen, **kwargs):
            seen.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
            return step(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", spy)
        train(model, data, epochs=1, clip=clip)
        monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert max(norms[1e-3]) <= 1e-3 * 1.001
    assert min(norms[None]) > 1e-3


def test_normalized_gradients_are_those_of_one_tensor_at_a_time():
    """Two groups over eight steps against Adam on g / (|g| + 1e-7), written out in float64. Gradients differ
    by a factor of 10^6 between tensors; those of one are zeros, and one has none."""

    class Sines(nn.Module):
        def __init__(self):
            super().__init__()
            for name, shape in (("big", (4, 3)), ("small", (3,)), ("flat", (2,)), ("unused", (2,))):
                setattr(self, name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))

        def parameter_groups(self):
            return {"a": [self.big, self.unused], "b": [self.small, self.flat]}

        def loss(self, z):
            big, small = 1e3 * (z @ self.big.T).sin(), 1e-3 * (z * self.small).sin()
            return big.sum() + small.sum() + 0 * self.flat.sum()

    torch.manual_seed(0)
    module = Sines()
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    moments = dict.fromkeys(expected, (0.0, 0.0))
    optimizers = make_optimizers(module, TrainConfig(lr=0.01))
    for t, z in enumerate(torch.randn(8, 16, 3, dtype=torch.float64), 1):
        module.zero_grad()
        module.loss(z).backward()
        for name, p in module.named_parameters():
            if p.grad is None:
                continue
            g = p.grad / (p.grad.square().sum().sqrt() + 1e-7)
            m, v = moments[name]
            moments[name] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            expected[name] -= 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        for optimizer in optimizers.values():
            normalize_gradients(optimizer.param_groups[0]["params"])
            optimizer.step()
        for name, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=0, atol=1e-12)


def test_the_optimiser_sees_normalized_gradients_of_every_group(data, monkeypatch):
    model, norms = small("factor_vae"), []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        norms.extend(p.grad.norm().item() for p in self.param_groups[0]["params"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(model, data, epochs=1, normalize_gradients=True)
    assert len(norms) == 7 * len([*model.parameters()])
    assert norms == pytest.approx([1.0] * len(norms), abs=1e-3)
    with pytest.raises(VaezooError, match="clip has no effect"):
        train(small(), data, normalize_gradients=True, clip=1)


class TwoPlayers(nn.Module):
    """A generator and a critic; the critic sits out every other step."""

    default_prior = None

    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(3, 3), nn.Linear(3, 1)

    def parameter_groups(self):
        return {"generator": [*self.generator.parameters()], "critic": [*self.critic.parameters()]}

    def losses(self, z, progress: Progress):
        found = {"generator": Loss((self.generator(z) - z).square().sum(1).mean(), {})}
        if int(progress.step) % 2 == 0:
            found["critic"] = Loss(
                self.critic(self.generator(z).detach()).square().mean(), {"critic": z.mean()}
            )
        return found


def test_a_group_without_a_loss_sits_out_and_groups_have_their_own_options():
    from vaezoo.trainer import fit

    torch.manual_seed(0)
    module, z = TwoPlayers(), torch.randn(64, 3)
    config = TrainConfig(epochs=1, batch_size=16, groups={"critic": GroupConfig(lr=0.0)}, log_steps=1)
    before = weights(module)
    run = fit(module, Loader(Latents(z), 16), Loader(Latents(z), 16), config, progress=False)
    assert torch.equal(module.critic.weight, before["critic.weight"]), "lr=0 must keep the critic"
    assert not torch.equal(module.generator.weight, before["generator.weight"])
    assert [("train/critic" in line) for line in run.history if "train/loss" in line] == [
        True,
        False,
        True,
        False,
    ]


def test_groups_must_split_the_parameters():
    module = TwoPlayers()
    module.parameter_groups = lambda: {"generator": [*module.generator.parameters()]}
    with pytest.raises(VaezooError, match=r"leave out critic\.weight"):
        make_optimizers(module, TrainConfig())
    module.parameter_groups = lambda: {"a": [*module.parameters()], "b": [*module.critic.parameters()]}
    with pytest.raises(VaezooError, match="share or add"):
        make_optimizers(module, TrainConfig())
    with pytest.raises(VaezooError, match="groups names 'critc'"):
        make_optimizers(TwoPlayers(), TrainConfig(groups={"critc": GroupConfig()}))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_to_about_the_same_loss(precision, data):
    losses = [train(small(), data, epochs=8, lr=5e-3, precision=p).best_loss for p in ("float32", precision)]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_in_fp16(name, data):
    history = train(small(name), data, precision="fp16").history
    losses = [line["validation/loss"] for line in history if "validation/loss" in line]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("name", TRAINED_PRIORS)
def test_priors_train_in_fp16(name, data):
    of, options = TRAINED_PRIORS[name]
    options = {**options, "batch_size": 32, "epochs": 2, "device": "cpu", "progress": False}
    losses = [
        vaezoo.fit_prior(small(of), data, name, precision=p, **options).best_loss for p in ("float32", "fp16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


class Overflow(Crash):
    """A loss at one step whose gradient is too large when it is scaled, but not as it is."""

    def __call__(self, x, progress):
        losses = self.losses(x, progress)
        if int(progress.step) == self.step and torch.is_grad_enabled():
            losses = {name: Loss(1e34 * loss.total, loss.terms) for name, loss in losses.items()}
        return losses


def test_a_gradient_that_overflows_in_fp16_costs_a_step_and_halves_the_scale(data, tmp_path, monkeypatch):
    model, seen = small(), []
    model.losses = Overflow(model, 5)
    step = torch.optim.AdamW.step

    def spy(self, *rest, **options):
        before = weights(model)
        step(self, *rest, **options)
        after = weights(model)
        seen.append(any(not torch.equal(before[name], after[name]) for name in before))

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(model, data, epochs=1, precision="fp16", out=tmp_path)
    assert seen == [True] * 5 + [False] + [True]
    scaler = read_header(tmp_path / STATE)["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2.0**15, 1)


def test_resume_in_fp16_is_invisible(data, tmp_path):
    """With the scale that an overflow has left: at another, gradients would round elsewhere."""
    options = {"epochs": 3, "precision": "fp16", "clip": 1.0}
    model = small("factor_vae")
    model.losses = Overflow(model, 5)
    train(model, data, out=tmp_path / "whole", **options)
    model = small("factor_vae")
    model.losses = Overflow(model, 5)
    model.losses = StopAt(model, 9)
    with pytest.raises(KeyboardInterrupt):
        train(model, data, out=tmp_path / "resumed", **options)
    train(small("factor_vae", seed=99), data, out=tmp_path / "resumed", resume=True, **options)
    files = [tmp_path / name / STATE for name in ("whole", "resumed")]
    assert_same(*map(read_tensors, files))
    scalers = [read_header(file)["scaler"] for file in files]
    assert scalers[0] == scalers[1]
    assert scalers[0]["scale"] < 2.0**16


def test_fp16_clips_the_gradient_as_it_is_without_its_scale(data, monkeypatch):
    first = {}
    step = torch.optim.AdamW.step
    for precision in ("float32", "fp16"):
        model, seen = small("ae"), first.setdefault(precision, [])

        def spy(self, *rest, model=model, seen=seen, **options):
            seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            return step(self, *rest, **options)

        monkeypatch.setattr(torch.optim.AdamW, "step", spy)
        train(model, data, epochs=1, clip=0.01, precision=precision)
    assert first["fp16"][0].norm().item() == pytest.approx(0.01, rel=1e-4)
    assert torch.cosine_similarity(first["fp16"][0], first["float32"][0], 0) > 0.999


@pytest.mark.parametrize("fails", [False, True])
def test_tf32_holds_within_the_run(fails, data):
    model, seen = small(), set()
    losses = model.losses

    def spy(x, progress):
        seen.add(torch.get_float32_matmul_precision())
        if fails:
            raise RuntimeError("over")
        return losses(x, progress)

    model.losses = spy
    with pytest.raises(RuntimeError, match="over") if fails else nullcontext():
        train(model, data, epochs=1, precision="tf32")
    assert seen == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_precision_that_the_device_does_not_have_is_refused():
    with pytest.raises(VaezooError, match="precision='fp16' is not to be had on meta"):
        _autocast(torch.device("meta"), "fp16")


def test_a_run_that_was_begun_when_precision_was_called_bf16_goes_on(tmp_path):
    options = ["--data", "digits", "--device", "cpu", "latent_dim=2", "precision=bf16", "log_steps=1000"]
    for out, epochs in (("whole", "2"), ("old", "1")):
        assert main(["train", "vae", *options, "--epochs", epochs, "--out", str(tmp_path / out)]) == 0
    old = tmp_path / "old"
    header = read_header(old / STATE)
    described = json.loads((old / "run.json").read_text())
    for recorded in (header, described["info"]):
        del recorded["train"]["precision"]
        recorded["train"]["bf16"] = True
    del header["scaler"]
    write_tensors(old / STATE, read_tensors(old / STATE), header)
    (old / "run.json").write_text(json.dumps(described))
    assert main(["train", "--resume", str(old), "--device", "cpu", "--epochs", "2"]) == 0
    assert_same(weights(vaezoo.load(old)), weights(vaezoo.load(tmp_path / "whole")))


@pytest.mark.slow
def test_compiled_step_is_the_eager_step(data):
    """`torch.compile` gives the same losses within float tolerance, for a model whose loss draws no noise."""
    torch.compiler.reset()
    histories = []
    for compiled in (False, True):
        run = train(small("ae"), data, epochs=1, log_steps=1, compile=compiled)
        histories.append([line["train/loss"] for line in run.history if "train/loss" in line])
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)


def test_wrong_shape_and_wrong_options(data):
    with pytest.raises(VaezooError, match=r"made for images of shape \(1, 28, 28\).*image_shape=\(1, 8, 8\)"):
        train(vaezoo.create("vae"), data)
    with pytest.raises(VaezooError, match="did you mean 'epochs'"):
        train(small(), data, epoch=3)
    with pytest.raises(VaezooError, match="less than 1"):
        train(small(), data, betas=(2, 0.9))
    with pytest.raises(VaezooError, match="lrr"):
        train(small(), data, groups={"model": {"lrr": 1}})
    with pytest.raises(VaezooError, match=r"lr=-1.*greater than 0"):
        train(small(), data, lr=-1)
    with pytest.raises(VaezooError, match="not to be had here"):
        train(small(), data, device="cuda:99")
    with pytest.raises(VaezooError, match="batch_size"):
        train(small(), data, batch_size=10_000)


def test_a_stale_prior_is_dropped(data):
    """Latents change in training, so a prior that was fitted to them goes; a VAE is back at N(0, I)."""
    for name, expected in (("ae", None), ("vae", "StandardNormal")):
        model = small(name)
        vaezoo.fit_prior(model, data, "gaussian_mixture", components=2, device="cpu")
        assert model.prior.fitted
        train(model, data, epochs=1)
        assert (type(model.prior).__name__ if model.prior is not None else None) == expected


def test_a_fitted_prior_is_not_trained_with_the_model(data):
    model = small("vq_vae")
    before = {id(p) for p in model.parameters()}
    vaezoo.fit_prior(
        model, data, epochs=1, batch_size=32, width=8, depth=1, heads=1, device="cpu", progress=False
    )
    assert {id(p) for group in model.parameter_groups().values() for p in group} == before


def test_fit_prior_options_and_errors(data):
    model = small("vq_vae")
    with pytest.raises(VaezooError, match="did you mean 'width'"):
        vaezoo.fit_prior(model, data, widht=3)
    with pytest.raises(VaezooError, match="prior over one real vector"):
        vaezoo.fit_prior(model, data, "gaussian_mixture")
    with pytest.raises(VaezooError, match="unknown prior 'pixelcn'"):
        vaezoo.fit_prior(model, data, "pixelcn")


def test_vae_takes_a_mixture_after_training(data):
    """Ex-post density estimation for a model that has a prior of its own."""
    model = small()
    train(model, data, epochs=2)
    vaezoo.fit_prior(model, data, "gaussian_mixture", components=2, device="cpu")
    assert model.prior.config.components == 2
    x = data.test.batch(torch.arange(8))
    with seeded(0, "cpu"):
        assert model.log_prob(x, samples=2).isfinite().all()


def test_a_prior_goes_into_the_file_of_a_model(data, tmp_path):
    """As into a run folder: what the file said of the model's training stays."""
    model, file = small("vq_vae"), tmp_path / "vq.safetensors"
    vaezoo.save(model, file, {"train": {"epochs": 3}})
    vaezoo.fit_prior(model, data, "pixelcnn", out=file, width=4, layers=1, epochs=1, progress=False)
    assert read_header(file)["info"]["train"] == {"epochs": 3}
    assert (tmp_path / CODES).exists()
    assert type(vaezoo.load(file).prior).__name__ == "PixelCNNPrior"


# --- Labels ---------------------------------------------------------------------------------------------


class Counts(Prior):
    """Independent codes, with probabilities of their own for each class. Remembers what it is given."""

    class Config(BaseConfig):
        classes: int | None = None

    def __init__(self, config, latent):
        super().__init__(config, latent)
        self.conditional = config.classes is not None
        shape = (config.classes or 1, *latent.shapes[0], latent.codes)
        self.logits = nn.Parameter(torch.zeros(shape))
        self.seen, self.started = [], None

    def initialize(self, z):
        self.started = z

    def losses(self, batch, progress):
        z, labels = batch if self.conditional else (batch, torch.zeros(len(batch), dtype=torch.long))
        self.seen.append((torch.is_grad_enabled(), batch))
        chosen = self.logits[labels].log_softmax(-1).gather(-1, z.long().unsqueeze(-1))
        nll = -chosen.flatten(1).sum(1).mean()
        return {"prior": Loss(nll, {"prior_nll": nll})}


@pytest.fixture
def counts(monkeypatch):
    monkeypatch.setattr(PRIORS, "_table", dict(PRIORS._table))
    PRIORS.register("counts", Counts)


def labelled(data, classes=3):
    """The same images with labels that their brightness gives."""

    def split(images):
        x = images.batch(torch.arange(len(images)))
        return ResidentSplit((255 * x).byte(), (1000 * x.flatten(1).mean(1)).long() % classes)

    splits = [split(part) for part in (data.train, data.validation, data.test)]
    return ImageData("bars", *splits, data.image_shape)


FIT = {"progress": False, "device": "cpu", "batch_size": 32, "epochs": 1}


def test_a_prior_with_classes_gets_each_latent_with_the_label_of_its_image(counts, data):
    """All batches of an epoch and of validation, against the images encoded one by one."""
    data, model = labelled(data), small("vq_vae").eval()
    model.initialize(data.train.batch(torch.arange(100)))  # or all images have the same codes
    run = vaezoo.fit_prior(model, data, "counts", classes=3, **FIT)
    for split, training in ((data.train, True), (data.validation, False)):
        with torch.no_grad():
            codes = [
                model.latents(split.batch(torch.tensor([i]))).flatten().tolist() for i in range(len(split))
            ]
        pairs = sorted((label, tuple(z)) for label, z in zip(split.labels.tolist(), codes))
        assert len(set(pairs)) > len({z for _, z in pairs}) > 3, "or the test shows little"
        batches = [batch for grad, batch in run.model.seen if grad == training]
        assert all(isinstance(batch, Labelled) for batch in batches)
        fed = [(int(label), tuple(z.flatten().tolist())) for batch in batches for z, label in zip(*batch)]
        if training:  # the last images of an epoch that fill no batch are left out
            assert len(fed) == len(split) // 32 * 32
            rest = list(pairs)
            for pair in fed:
                rest.remove(pair)
        else:
            assert sorted(fed) == pairs
    assert torch.equal(run.model.started, encode_all(model, data.train)), "initialize gets the latents alone"


def test_a_prior_without_classes_gets_latents_alone(counts, data):
    run = vaezoo.fit_prior(small("vq_vae"), labelled(data), "counts", **FIT)
    assert all(isinstance(batch, torch.Tensor) for _, batch in run.model.seen)


def test_labels_that_are_not_there_or_not_below_the_classes(counts, data):
    model = small("vq_vae")
    with pytest.raises(VaezooError, match="with classes=3 needs labels, but tensor has none"):
        vaezoo.fit_prior(model, data, "counts", classes=3, **FIT)
    with pytest.raises(
        VaezooError, match="classes=2, so labels are 0 to 1, but those of bars go from 0 to 2"
    ):
        vaezoo.fit_prior(model, labelled(data), "counts", classes=2, **FIT)
    wrong = labelled(data)
    wrong.validation.labels[3] = -1
    with pytest.raises(VaezooError, match="go from -1 to"):
        vaezoo.fit_prior(model, wrong, "counts", classes=3, **FIT)
    assert model.prior is None


def test_a_prior_is_not_resumed_with_other_labels(counts, data, tmp_path):
    model, with_labels = small("vq_vae"), labelled(data)
    options = {"classes": 3, "out": tmp_path, **FIT}
    vaezoo.fit_prior(model, with_labels, "counts", **options)
    vaezoo.fit_prior(model, with_labels, "counts", resume=True, **{**options, "epochs": 2})
    with_labels.train.labels[-1] = (with_labels.train.labels[-1] + 1) % 3
    with pytest.raises(CheckpointError, match=r"other options \(labels\)"):
        vaezoo.fit_prior(model, with_labels, "counts", resume=True, **{**options, "epochs": 3})


# --- Several priors of one model ------------------------------------------------------------------------


def test_fitting_a_prior_leaves_the_others_as_they_are(counts, data, tmp_path):
    model = small("vq_vae")
    tiny = {"width": 8, "depth": 1, "heads": 1}
    vaezoo.fit_prior(model, data, "transformer", out=tmp_path, **tiny, **FIT)
    files = [prior_file(tmp_path, "transformer")]
    files += [prior_folder(tmp_path, "transformer") / name for name in (STATE, METRICS, REPORT)]
    files[-1].write_text("{}")
    before = [file.read_bytes() for file in files]
    run = vaezoo.fit_prior(model, data, "counts", out=tmp_path, **FIT)
    assert run.folder == prior_folder(tmp_path, "counts")
    assert [file.read_bytes() for file in files] == before
    assert type(vaezoo.load(tmp_path, prior="counts").prior) is Counts
    again = vaezoo.load(tmp_path, prior="transformer")
    vaezoo.fit_prior(again, data, "transformer", out=tmp_path, resume=True, **tiny, **{**FIT, "epochs": 2})
    assert again.prior.config.width == 8
    # Fitted anew: what belongs to the earlier fit goes, a report too.
    vaezoo.fit_prior(again, data, "transformer", out=tmp_path, **tiny, **FIT)
    assert not files[-1].exists()
    assert prior_file(tmp_path, "counts").exists()


def test_priors_of_a_model_that_was_trained_further_are_refused(data, tmp_path):
    model = small()
    train(model, data, out=tmp_path, epochs=1)
    vaezoo.fit_prior(model, data, "gaussian_mixture", components=2, out=tmp_path, device="cpu")
    assert not vaezoo.load(tmp_path, prior="standard_normal").prior.fitted
    assert vaezoo.load(tmp_path, prior="gaussian_mixture").prior.fitted
    train(model, data, out=tmp_path, epochs=3, resume=True)
    with pytest.raises(CheckpointError, match="belongs to other weights"):
        vaezoo.load(tmp_path, prior="gaussian_mixture")
    assert not vaezoo.load(tmp_path, prior="standard_normal").prior.fitted
    vaezoo.fit_prior(model, data, "gaussian_mixture", components=2, out=tmp_path, device="cpu")
    for name in ("standard_normal", "gaussian_mixture"):
        assert_same(weights(vaezoo.load(tmp_path, prior=name).encoder), weights(model.encoder))


# --- Codes ----------------------------------------------------------------------------------------------


def spied(model):
    """The model with a list that grows with each batch that it encodes."""
    calls, encode = [], model.latents
    model.latents = lambda x: calls.append(len(x)) or encode(x)
    return calls


def levels(z):
    return z if isinstance(z, tuple) else (z,)


@pytest.mark.parametrize("name", ["vq_vae", "vq_vae2"])
@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_codes_are_encoded_once_and_are_those_that_encoding_gives(name, binarize, images, tmp_path):
    data, model = vaezoo.load_data(images, binarize=binarize), small(name)
    model.initialize(data.train.batch(torch.arange(100)))
    expected = {split: encode_all(model, data.splits[split], seed=3) for split in ("train", "validation")}
    calls = spied(model)
    for time in ("first", "second"):
        found = encode_data(model, data, 3, folder=tmp_path)
        assert bool(calls) == (time == "first")
        calls.clear()
        for split in expected:
            for a, b in zip(levels(found[split]), levels(expected[split]), strict=True):
                assert a.dtype == torch.uint8
                assert torch.equal(a, b), (time, split)


def test_codes_of_other_weights_data_or_seed_are_encoded_anew(images, tmp_path):
    data, model = vaezoo.load_data(images), small("vq_vae")
    model.initialize(data.train.batch(torch.arange(100)))
    calls = spied(model)

    def encodes(data, seed=0):
        calls.clear()
        found = encode_data(model, data, seed, folder=tmp_path)
        assert torch.equal(found["train"], encode_all(model, data.train, seed))
        return len(calls) > 1  # one is that of the line above

    assert encodes(data)
    assert not encodes(data)
    for other in (
        vaezoo.load_data(255 - images),
        vaezoo.load_data(images, seed=1),
        vaezoo.load_data(images[:290]),
    ):
        assert encodes(other)
        assert not encodes(other)
    assert encodes(vaezoo.load_data(images, binarize="dynamic"))
    assert encodes(vaezoo.load_data(images, binarize="dynamic"), seed=1)
    assert encodes(data)
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(-1)
    assert encodes(data)
    content = (tmp_path / CODES).read_bytes()
    for damaged in (b"", content[:-9], content[:-1] + bytes([content[-1] ^ 1])):
        (tmp_path / CODES).write_bytes(damaged)
        assert encodes(data), "damaged codes must not be used"
        assert (tmp_path / CODES).read_bytes() == content


def test_the_second_prior_is_fitted_to_the_codes_that_are_kept(counts, data, tmp_path):
    model = small("vq_vae")
    calls = spied(model)
    first = vaezoo.fit_prior(model, data, "counts", out=tmp_path, **FIT)
    assert calls
    assert sorted(read_tensors(tmp_path / CODES)) == ["train.00", "validation.00"]
    calls.clear()
    second = vaezoo.fit_prior(model, data, "counts", out=tmp_path, **FIT)
    assert not calls
    assert torch.equal(first.model.logits, second.model.logits)
    train(model, data, epochs=1)
    calls.clear()
    vaezoo.fit_prior(model, data, "counts", out=tmp_path, **FIT)
    assert calls


def test_real_latents_are_not_kept(data, tmp_path):
    vaezoo.fit_prior(small("ae"), data, "gaussian_mixture", components=2, out=tmp_path, device="cpu")
    assert not (tmp_path / CODES).exists()
    assert read_header(prior_file(tmp_path, "gaussian_mixture"))["info"]["prior_train"]["seed"] == 0


def test_latents_are_stored_compactly_and_in_order(data):
    model = small("vq_vae2").eval()
    levels = encode_all(model, data.train)
    assert [level.dtype for level in levels] == [torch.uint8, torch.uint8]
    with torch.no_grad():
        expected = model.latents(data.train.batch(torch.arange(5)))
    for level, wanted in zip(levels, expected):
        assert torch.equal(level[:5].long(), wanted)


def test_run_folder_documents_itself(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(small(), data, out=tmp_path, epochs=1)
    header = json.loads((tmp_path / "run.json").read_text())
    assert header["model"] == "vae"
    assert header["info"]["train"]["batch_size"] == 32
    assert header["info"]["data"]["fingerprint"]
    assert header["vaezoo"] == vaezoo.__version__
    made = header["environment"]
    assert (made["torch"], made["device"]) == (torch.__version__, "cpu")
    assert made["python"] == ".".join(map(str, sys.version_info[:3]))
    assert made["git_commit"] is None, "the test's folder is in no repository"
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert {"step", "epoch", "validation/loss", "validation/rate"} <= lines[-1].keys()
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_git_commit_of_the_working_directory(tmp_path, monkeypatch):
    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *author, *arguments], check=True, capture_output=True, text=True).stdout

    def commit():
        return environment(torch.device("cpu"))["git_commit"]

    monkeypatch.chdir(tmp_path)
    git("init")
    assert commit() is None, "there is no commit yet"
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "a")
    git("tag", "-a", "v1", "-m", "v1")
    head = git("rev-parse", "HEAD").strip()
    assert commit() == head
    (tmp_path / "run").write_text("not tracked")
    assert commit() == head
    (tmp_path / "file").write_text("b")
    assert commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit() is None
