"""Several processes that train one model are one process with the same batch.

This file is also the program of the processes: `torchrun test_distributed.py COMMAND FOLDER`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from bars import bars
from test_killed import MODELS_AND_PRIORS, PRIOR_CASES, TINY, run_folder, tiny

import vaezoo
from vaezoo import distributed
from vaezoo.checkpoint import fingerprint, read_header, read_tensors
from vaezoo.cli import main as main_of_cli
from vaezoo.data import Loader, ResidentSplit
from vaezoo.errors import Terminated, TrainingError, VaezooError
from vaezoo.priors import PRIORS
from vaezoo.random import generator
from vaezoo.run import METRICS, STATE

OPTIONS = {"batch_size": 32, "epochs": 2, "device": "cpu", "progress": False, "log_steps": 3}

#: Also a codebook that learns by gradient.
CASES = [*MODELS_AND_PRIORS, "vq_vae-gradient"]

#: Models that compute something over all images at hand, so that parts of a batch are not the batch.
OVER_THE_BATCH = ("beta_tc_vae", "factor_vae", "vq_vae", "vq_vae2", "vq_vae-gradient", "vae+vamp")


# --- The program ----------------------------------------------------------------------------------------


def make(case: str, seed: int = 0) -> vaezoo.Autoencoder:
    name, _, variant = case.partition("-")
    model = tiny(name, seed)
    if not hasattr(model, "codebooks"):
        return model
    options = {**model.config.model_dump(), "revive": 0.5, "decay": 0.5, "ema": not variant}
    torch.manual_seed(seed)
    return vaezoo.create(name, **options)


def run_case(case: str, out: Path | None, model: vaezoo.Autoencoder | None = None, **options: Any) -> Any:
    """Train a model on images that are binarised anew in every batch, or fit a prior with classes if it
    takes them. No dropout, of which each process has its own."""
    kind, _, name = case.rpartition(":")
    options = {**OPTIONS, **options}
    if kind != "prior":
        data = vaezoo.load_data(bars(), binarize="dynamic")
        smooth = {"weight_ema": 0.9, "lr_schedule": "cosine", "clip": 100.0}
        return vaezoo.train(model or make(name), data, out=out, **{**smooth, **options})
    fields = PRIORS.get(name).Config.model_fields
    own: dict[str, Any] = {key: value for key, value in TINY.items() if key in fields}
    own |= {key: value for key, value in {"dropout": 0.0, "classes": 10}.items() if key in fields}
    options["batch_size"] = 128
    return vaezoo.fit_prior(
        tiny(PRIOR_CASES[name]), vaezoo.load_data("digits"), name, out=out, **own, **options
    )


def at_step(model: vaezoo.Autoencoder, step: int, process: int, act: Any) -> vaezoo.Autoencoder:
    """The model, with something that happens to one process at a training step."""
    losses = model.losses

    def losses_with_trouble(x: torch.Tensor, progress: Any) -> Any:
        found = losses(x, progress)
        here = distributed.rank() == process % distributed.processes()
        if here and model.training and int(progress.step) == step:
            found = act(found) or found
        return found

    model.losses = losses_with_trouble  # type: ignore[method-assign]
    return model


def terminate(found: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail(found: Any) -> None:
    raise RuntimeError("trouble in one process")


def die(found: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def spoil(found: dict[str, Any]) -> dict[str, Any]:
    return {name: vaezoo.Loss(loss.total * float("nan"), loss.terms) for name, loss in found.items()}


def same_everywhere(run: Any) -> None:
    """Parameters, codebooks and their usage are the same on all processes to the bit."""
    assert len(set(distributed.collect(fingerprint(run.model.state_dict())))) == 1
    assert len(set(distributed.collect(json.dumps(run.history)))) == 1


def command_resume(folder: Path) -> None:
    same_everywhere(run_case("vq_vae", folder / "stopped", make("vq_vae", seed=99), resume=True))


def script(folder: Path) -> None:
    """One run after the other in the same processes; what one leaves is there for the next on all of them."""
    model = make("vq_vae")
    data = vaezoo.load_data(bars())
    vaezoo.train(model, data, out=folder, **OPTIONS)
    prior = {**OPTIONS, "width": 8, "layers": 1}
    vaezoo.fit_prior(model, data, "pixelcnn", out=folder, **prior)
    vaezoo.fit_prior(model, data, "pixelcnn", out=folder, resume=True, **{**prior, "epochs": 4})
    assert vaezoo.load(folder).prior.fitted


def command_cases(folder: Path) -> None:
    for case in CASES:
        same_everywhere(run_case(case, folder / case))
        if distributed.processes() == 1 and case not in OVER_THE_BATCH:
            run_case(case, folder / f"{case} in parts", accumulate=4)
    same_everywhere(run_case("vae", folder / "vae in two parts", accumulate=2))
    script(folder / "script")
    refused(folder / "refused")
    with pytest.raises(Terminated, match="stopped after step"):
        run_case("vq_vae", folder / "stopped", at_step(make("vq_vae"), 3, 1, terminate))
    with pytest.raises(TrainingError) as error:
        run_case("vae", None, at_step(make("vae"), 10, 1, spoil))
    assert len(set(distributed.collect(str(error.value)))) == 1
    assert "loss term 'loss' became nan at step 10" in str(error.value)


def refused(folder: Path) -> None:
    """What cannot be trained in several processes, or in parts."""
    with pytest.raises(VaezooError, match="must be a multiple of"):
        run_case("vae", folder, batch_size=31, accumulate=2)
    assert not folder.exists()
    if distributed.processes() == 1:
        return
    model = make("vae")
    model.unused = torch.nn.Linear(2, 2)
    with pytest.raises(VaezooError, match=r"VAE: the loss does not use 'unused\.weight'"):
        run_case("vae", None, model)


def command_fail(folder: Path) -> None:
    run_case("vae", folder, at_step(make("vae"), 3, 1, fail))


def command_die(folder: Path) -> None:
    run_case("vae", folder, at_step(make("vae"), 3, 1, die))


def main(command: str, folder: Path) -> None:
    """In float64, so that rounding hides nothing."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    batch = ResidentSplit.batch
    ResidentSplit.batch = lambda self, indices: batch(self, indices).double()  # type: ignore[method-assign]
    distributed.join_group()
    globals()[f"command_{command}"](folder)


# --- The tests ------------------------------------------------------------------------------------------

LIMIT = 120  # seconds


def start(processes: int, *arguments: str | Path) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    paths = os.pathsep.join([str(Path(vaezoo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=LIMIT)
    return process.returncode, output


def run_both(one: Path, two: Path, command: str) -> None:
    """The program in one process and in two, side by side."""
    for started in [start(1, __file__, command, one), start(2, __file__, command, two)]:
        code, output = finish(started)
        assert code == 0, output


#: Tests of `runs` go to one worker, or each worker would make them anew.
of_runs = pytest.mark.xdist_group("distributed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All cases by one process and by two."""
    folder = tmp_path_factory.mktemp("runs")
    run_both(folder / "one", folder / "two", "cases")
    return folder


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, averages, optimisers and best weights of the last state, and the log."""
    tensors = read_tensors(found / STATE)
    for name, tensor in read_tensors(expected / STATE).items():
        assert torch.allclose(tensors[name], tensor, rtol=1e-6, atol=1e-9), name
    lines = [[json.loads(line) for line in (f / METRICS).read_text().splitlines()] for f in (found, expected)]
    assert len(lines[0]) == len(lines[1]) > 5
    for line, same in zip(*lines):
        assert line == pytest.approx(same, rel=1e-6)


@of_runs
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_same_batch(case, runs):
    assert_same_run(run_folder(case, runs / "two" / case), run_folder(case, runs / "one" / case))


@of_runs
@pytest.mark.parametrize("case", [case for case in CASES if case not in OVER_THE_BATCH])
def test_parts_one_after_the_other_are_the_batch(case, runs):
    in_parts = run_folder(case, runs / "one" / f"{case} in parts")
    assert_same_run(in_parts, run_folder(case, runs / "one" / case))


@of_runs
def test_two_processes_with_two_parts_each_are_the_batch(runs):
    assert_same_run(runs / "two" / "vae in two parts", runs / "one" / "vae")


@of_runs
def test_codes_were_revived(runs):
    usage = read_tensors(runs / "one" / "vq_vae" / STATE)["model.codebooks.0.usage"]
    assert (usage == 1).any(), "no code was revived in the last step"


@of_runs
def test_a_run_goes_on_with_another_number_of_processes(runs):
    """One that a signal to one of the processes has stopped, too."""
    run_both(runs / "two", runs / "one", "resume")
    for folder in ("one", "two"):
        assert_same_run(runs / folder / "stopped", runs / "one" / "vq_vae")


def test_a_process_that_raises_ends_the_run_with_its_traceback(tmp_path):
    code, output = finish(start(2, __file__, "fail", tmp_path))
    assert code != 0
    assert "in fail\n" in output, output
    assert "RuntimeError: trouble in one process" in output


def test_a_process_that_is_killed_ends_the_run(tmp_path):
    code, output = finish(start(2, __file__, "die", tmp_path))
    assert code != 0
    assert "SIGKILL" in output, output


def test_torchrun_that_is_terminated_leaves_a_state_to_go_on_from(tmp_path):
    train = ["-m", "vaezoo", "train", "vae", "--data", "digits", "--device", "cpu", "--out", tmp_path]
    process = start(2, *train, "epochs=100000", "checkpoint_seconds=100000")
    deadline = time.monotonic() + LIMIT
    while not (tmp_path / METRICS).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    code, output = finish(process)
    assert code != 0
    assert output.count("stopped after step") == 2, output
    logged = (tmp_path / METRICS).read_text().splitlines()
    assert read_header(tmp_path / STATE)["step"] == json.loads(logged[-1])["step"]


def test_only_training_runs_in_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a test")
    assert main_of_cli(["list"]) == 2
    assert "without torchrun" in capsys.readouterr().err


class Numbers:
    """Images that are their own numbers."""

    device = torch.device("cpu")

    def __init__(self, size: int, resident: bool) -> None:
        self.size, self.resident = size, resident

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return indices.double()

    def load(self, index: int) -> torch.Tensor:
        return torch.tensor(index)

    def floats(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.double()


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (3, 1), (2, 3), (1, 6)])
def test_shares_of_all_processes_are_the_batches(processes, parts, resident):
    """Every image once per epoch, in the rows that it has in the batch; from the middle of an epoch, too."""
    split = Numbers(33, resident)
    expected = list(Loader(Numbers(33, True), 12, seed=5).epoch(3, start=1))
    shares = [
        list(Loader(split, 12, seed=5, share=(i, processes, parts)).epoch(3, start=1))
        for i in range(processes)
    ]
    found = [
        torch.cat([part for share in shares for part in share[step * parts : (step + 1) * parts]])
        for step in range(len(expected))
    ]
    assert [batch.tolist() for batch in found] == [batch.tolist() for batch in expected]
    assert len(torch.cat(found).unique()) == 12


def test_validation_batches_are_divided_without_loss():
    split, whole = Numbers(33, True), torch.arange(33.0).tolist()
    parts = [Loader(split, 4, shuffle=False, drop_last=False).epoch(0, start=i, every=2) for i in range(2)]
    first, second = (list(part) for part in parts)
    assert sorted(torch.cat(first + second).tolist()) == whole
    assert first[-1].tolist() == [32.0]


def test_whether_there_are_other_processes_is_asked_anew_each_time(monkeypatch):
    """Trap 5: an answer that is kept from before the group started leaves every codebook to its process."""
    assert (distributed.processes(), distributed.rank()) == (1, 0)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    assert (distributed.processes(), distributed.rank()) == (3, 2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    assert (distributed.processes(), distributed.rank()) == (1, 0)


def test_noise_of_images_is_cut_from_that_of_the_batch(monkeypatch):
    """Whatever the axis; what does not belong to images is the same on all processes."""
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    noise = generator(7, "cpu")
    rows = torch.randn(12, 5, generator=noise)
    columns = torch.rand(2, 12, generator=noise)
    components = torch.randn(7, 5, generator=noise)
    for process in range(3):
        monkeypatch.setattr(distributed, "rank", lambda process=process: process)
        for part in range(2):
            here = slice(4 * process + 2 * part, 4 * process + 2 * part + 2)
            with distributed.part_of_batch(7, 12, part, 2):
                assert torch.equal(distributed.per_image(torch.randn, (2, 5), "cpu"), rows[here])
                assert torch.equal(distributed.per_image(torch.rand, (2, 2), "cpu", 1), columns[:, here])
                assert torch.equal(distributed.per_image(torch.randn, (7, 5), "cpu"), components)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
