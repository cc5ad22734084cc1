"""Runs that are killed with SIGKILL, and resumed: what is left is what a run that nobody killed leaves.

This file is also the program that is killed: `python test_killed.py FOLDER` trains every case in a process of
its own, forked from one that has torch imported, until the process kills itself.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bars import bars
from PIL import Image

import vaezoo
from vaezoo.checkpoint import PRIORS_FOLDER, WEIGHTS, read_header, read_tensors
from vaezoo.priors import PRIORS
from vaezoo.registry import MODELS
from vaezoo.run import METRICS, STATE, State

STEPS_PER_EPOCH, EPOCHS = 7, 2

#: Options that make models and priors tiny, where they have them.
TINY = {
    "latent_dim": 3,
    "codes": 8,
    "code_dim": 4,
    "channels": 4,
    "residual_channels": 2,
    "discriminator_width": 16,
    "discriminator_depth": 2,
    "components": 4,
    "width": 8,
    "hidden": 8,
    "depth": 1,
    "layers": 1,
    "heads": 1,
    "blocks": 1,
}
NETWORKS = {"mlp": {"hidden": [16]}, "conv": {"channels": [4, 4], "hidden": 8}}
TRAINING = {"batch_size": 32, "epochs": EPOCHS, "device": "cpu", "progress": False, "log_steps": 3}

#: The models, and the priors that the loop trains, each on a model that it goes with.
PRIOR_CASES = {"flow": "vae", "two_stage": "vae", "pixelcnn": "vq_vae", "pixelsnail": "vq_vae2"} | {
    "transformer": "vq_vae"
}
#: A source of images that are decoded when they are asked for, by other processes.
STREAMING_CASES = ("streaming:folder", "streaming:shards")
MODELS_AND_PRIORS = [*MODELS.names(), "vae+vamp", *(f"prior:{name}" for name in PRIOR_CASES)]
CASES = [*MODELS_AND_PRIORS, *STREAMING_CASES]


def tiny(name: str, seed: int = 0) -> vaezoo.Autoencoder:
    name, _, prior = name.partition("+")
    fields = MODELS.get(name).Config.model_fields
    options = {key: value for key, value in TINY.items() if key in fields}
    if "network" in fields:
        options["network_options"] = NETWORKS[fields["network"].default]
    if prior:
        options["prior"] = prior
    torch.manual_seed(seed)
    return vaezoo.create(name, image_shape=(1, 8, 8), **options)


def run_case(case: str, out: Path, resume: bool = False) -> None:
    """Train a model, or fit a prior to a model, that starts elsewhere if the run is resumed."""
    kind, _, name = case.rpartition(":")
    data = streamed(name, out / "data") if kind == "streaming" else vaezoo.load_data(bars())
    if kind == "prior":
        fields = PRIORS.get(name).Config.model_fields
        options = {key: value for key, value in TINY.items() if key in fields}
        model = tiny(PRIOR_CASES[name])  # the same weights: a prior belongs to them
        vaezoo.fit_prior(model, data, name, out=out, resume=resume, **options, **TRAINING)
    else:
        options = {"weight_ema": 0.9, "lr_schedule": "cosine", **TRAINING}
        if kind == "streaming":
            name, options["workers"] = "vae", 2
        vaezoo.train(tiny(name, seed=99 if resume else 0), data, out=out, resume=resume, **options)


def streamed(kind: str, folder: Path) -> vaezoo.data.ImageData:
    """The same images in files, binarised anew at every step."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for i, image in enumerate(bars()):
            Image.fromarray(image[0].numpy()).save(folder / f"{i:03}.png")
        if kind == "shards":
            files = sorted(folder.iterdir())
            for number in range(3):
                with tarfile.open(folder / f"{number}.tar", "w") as shard:
                    for file in files[100 * number : 100 * number + 100]:
                        shard.add(file, file.name)
    source = "image_folder" if kind == "folder" else "webdataset"
    return vaezoo.load_data(source, path=folder, channels=1, memory_limit_gb=0, binarize="dynamic")


def run_folder(case: str, out: Path) -> Path:
    return out / PRIORS_FOLDER / case.removeprefix("prior:") if case.startswith("prior:") else out


# --- The program that is killed -------------------------------------------------------------------------


def train_until_killed(case: str, out: Path) -> None:
    """Write the state for the last time after a random step, and die after a later one: between two steps, or
    in the middle of writing the state or a line of the log."""
    chance = random.Random(case)
    written = chance.randrange(1, EPOCHS * STEPS_PER_EPOCH - 2)
    last = chance.randrange(written + 1, EPOCHS * STEPS_PER_EPOCH)
    last += last % STEPS_PER_EPOCH == 0  # within an epoch
    how = chance.choice(["step", "state", "log"])

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write(self: State, folder: Path, *rest: object) -> None:
        if self.run.steps == last:
            if how == "state":
                os.replace = lambda *_: die()
                write_state(self, folder, *rest)
            elif how == "log":
                with (folder / METRICS).open("a") as file:
                    file.write('{"step": 14, "epo')
            die()
        if self.run.steps <= written:
            write_state(self, folder, *rest)

    write_state: Callable[..., None] = State.write
    State.write = write  # type: ignore[method-assign]
    TRAINING["checkpoint_seconds"] = 0
    run_case(case, out)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for number, case in enumerate(CASES):
        child = os.fork()
        if child == 0:
            train_until_killed(case, folder / str(number))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{case} was not killed"
        assert os.WTERMSIG(status) == signal.SIGKILL, f"{case} died of {status}"


# --- The tests ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=600)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_as_if_it_had_not_been(case, killed, tmp_path):
    """Weights, averages, codebooks, optimiser state and log, to the bit."""
    parts = killed / str(CASES.index(case))
    assert 0 < read_header(run_folder(case, parts) / STATE)["step"] < EPOCHS * STEPS_PER_EPOCH
    run_case(case, tmp_path)
    run_case(case, parts, resume=True)
    for file in sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.safetensors")):
        whole, resumed = read_tensors(tmp_path / file), read_tensors(parts / file)
        assert whole.keys() == resumed.keys()
        for name in whole:
            assert torch.equal(whole[name], resumed[name]), f"'{name}' of {file} differs"
    headers = [read_header(run_folder(case, out) / STATE) for out in (tmp_path, parts)]
    assert headers[0]["step"] == EPOCHS * STEPS_PER_EPOCH
    assert headers[0] == headers[1]
    assert (tmp_path / WEIGHTS).exists()
    logs = [(run_folder(case, out) / METRICS).read_text() for out in (tmp_path, parts)]
    assert logs[0] == logs[1]
    assert not list(parts.rglob("*.tmp")), "left by a write that was killed"


def test_every_prior_that_is_trained_is_among_the_cases():
    without_training = {"standard_normal", "gaussian_mixture", "vamp"}
    assert {*PRIORS.names()} == {*PRIOR_CASES} | without_training


if __name__ == "__main__":
    main(Path(sys.argv[1]))
