"""Some 1,900 damaged and made-up files and configs: an error of ours or harmless, and no code is run."""

from __future__ import annotations

import copy
import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.amp import GradScaler

import vaezoo
import vaezoo.trainer
from vaezoo.checkpoint import WEIGHTS, prior_file, read_header, read_tensors
from vaezoo.cli import main
from vaezoo.errors import CheckpointError, VaezooError
from vaezoo.priors import PRIORS
from vaezoo.registry import MODELS
from vaezoo.run import STATE, Listeners, Log, Run, State, TrainConfig
from vaezoo.trainer import make_optimizers

SMALL = {"image_shape": (1, 8, 8), "latent_dim": 2, "network_options": {"hidden": [8]}}
TRAINING = {"batch_size": 16, "epochs": 1, "weight_ema": 0.9, "device": "cpu", "progress": False}
BYTES, HEADERS, CONFIGS, RUNS = 200, 150, 600, 100

#: What JSON may say in place of anything.
JUNK = [
    *(None, True, False, 0, -1, 3, 2**60, -(2**60), 1e308, float("inf"), float("nan"), 0.5),
    *(
        "",
        "vae",
        "../../../etc/passwd",
        "/dev/zero",
        "os.system",
        "__import__('os').abort()",
        "\x00",
        "9" * 400,
    ),
    *([], [[]], [2**60], ["a"], {}, {"a": 1}, {"name": "vae"}, {"__class__": "os.system"}),
    *(["x"] * 2000, json.loads("[" * 300 + "]" * 300)),
]


class Bomb:
    """What unpickling would make a folder of."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.mkdir, (self.mark,)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("data") / "images.safetensors"
    safetensors.torch.save_file({"images": torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)}, path)
    return path


@pytest.fixture(scope="module")
def original(images, tmp_path_factory) -> Path:
    """A run with its state and a prior beside the model, which has another."""
    out = tmp_path_factory.mktemp("original") / "run"
    model = vaezoo.create("vae", **SMALL)
    vaezoo.train(model, images, out=out, **TRAINING)
    vaezoo.fit_prior(model, images, "gaussian_mixture", components=2, out=out, device="cpu")
    vaezoo.save(vaezoo.load(out, prior="standard_normal"), out)
    return out


@pytest.fixture
def run(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def damaged(content: bytes, chance: random.Random, mark: Path) -> bytes:
    """The bytes of a safetensors file with something done to them."""
    (length,) = struct.unpack("<Q", content[:8])
    result = bytearray(content)
    how = chance.randrange(8)
    if how in (0, 1):  # flipped bits, anywhere or in the header
        for _ in range(chance.choice([1, 1, 5])):
            result[chance.randrange(8 + length if how else len(content))] ^= 1 << chance.randrange(8)
    elif how == 2:
        del result[chance.randrange(len(content)) :]
    elif how == 3:  # a header of another length
        result[:8] = struct.pack("<Q", chance.choice([2**60, 2**63, 2**64 - 1, 0, length - 1, length + 9]))
    elif how == 4:  # a piece cut out, or written twice
        start = chance.randrange(len(content))
        piece = result[start : start + chance.randrange(1, 200)]
        result[start : start + len(piece)] = chance.choice([b"", piece + piece])
    elif how == 5:  # a tensor that claims to be large, to lie elsewhere, or to be of another type
        header = json.loads(content[8 : 8 + length])
        entry = header[chance.choice([name for name in header if name != "__metadata__"])]
        entry[chance.choice([*entry])] = chance.choice(
            [[2**60], [0, 2**60], [2**64, 1], "F64", "U8", "X", []]
        )
        text = json.dumps(header).encode()
        result[: 8 + length] = struct.pack("<Q", len(text)) + text
    elif how == 6:
        return pickle.dumps(Bomb(mark)) + content[: chance.randrange(len(content))]
    else:
        return chance.randbytes(chance.randrange(300))
    return bytes(result)


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in JSON, as (container, key)."""
    for key in [*value] if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list) and value[key]:
            yield from spots(value[key])


def made_up(value: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """JSON that says something else in one place."""
    value = copy.deepcopy(value)
    container, key = chance.choice([*spots(value)])
    how = chance.randrange(6)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[chance.choice(["x", "name", "encoder", "device", "out", "source", "__class__"])] = (
            chance.choice(JUNK)
        )
    else:
        container[key] = chance.choice(JUNK)
    return value


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives; None if it is refused with an error of ours. Any other one fails the test."""
    try:
        return call()
    except VaezooError:
        return None


def loads(run: Path, prior: str | None = None) -> Callable[[], Any]:
    return lambda: vaezoo.load(run, prior=prior).state_dict()


def restores(run: Path, out: Path) -> Callable[[], Any]:
    """What the trainer does with a state."""
    header = read_header(run / STATE)
    config, identity = TrainConfig.parse(header["train"], "test"), header["identity"]

    def call() -> Any:
        model = vaezoo.create("vae", **SMALL)
        of_run = Run(model, folder=out)
        log = Log(out, of_run, 50, Listeners([]))
        state = State(
            model, make_optimizers(model, config), {}, {}, of_run, log, GradScaler("cpu", enabled=False)
        )
        state.restore(out, config, identity)
        assert 0 <= of_run.best_step <= of_run.steps
        return model.state_dict()

    return call


FILES = ["model", "prior", "state"]


def target(file: str, original: Path, run: Path) -> tuple[Path, Callable[[], Any]]:
    if file == "state":
        return run / STATE, restores(original, run)
    if file == "prior":
        return prior_file(run, "gaussian_mixture"), loads(run, "gaussian_mixture")
    return run / WEIGHTS, loads(run)


@pytest.mark.parametrize("file", FILES)
def test_damaged_bytes_are_refused_or_change_nothing(file, original, run, tmp_path):
    path, call = target(file, original, run)
    content, expected = path.read_bytes(), call()
    chance, refused, mark = random.Random(file), 0, tmp_path / "executed"
    for _ in range(BYTES):
        path.write_bytes(damaged(content, chance, mark))
        found = outcome(call)
        if found is None:
            refused += 1
        else:
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert refused > 0.95 * BYTES
    assert not mark.exists()


@pytest.mark.parametrize("file", FILES)
def test_made_up_headers_are_refused_or_make_sense(file, original, run):
    """As in a file that somebody wrote on purpose: with no checksum, whole tensors, and any header."""
    path, call = target(file, original, run)
    header, tensors, chance = read_header(path), read_tensors(path), random.Random(file)
    del header["checksum"]
    refused = 0
    for _ in range(HEADERS):
        text = json.dumps(made_up(header, chance))
        path.write_bytes(safetensors.torch.save(tensors, metadata={"vaezoo": text}))
        refused += outcome(call) is None
    assert refused > HEADERS / 20  # most of a header is only for people to read


def test_made_up_states_do_not_reach_the_optimiser(original, run):
    """Of whatever shape: the fused step would read beyond what is there."""
    path, call = target("state", original, run)
    header, tensors = read_header(path), read_tensors(path)
    del header["checksum"]
    for name in tensors:
        for changed in ({}, {name: torch.zeros(0)}, {name: torch.zeros(1, 1, 7)}):
            others = {key: tensor for key, tensor in tensors.items() if key != name}
            text = json.dumps(header)
            path.write_bytes(safetensors.torch.save({**others, **changed}, metadata={"vaezoo": text}))
            with pytest.raises(CheckpointError, match="does not belong to this model"):
                call()


def test_made_up_configs_are_refused_or_valid():
    chance = random.Random(0)
    classes = [owner.Config for table in (MODELS, PRIORS) for owner in map(table.get, table.names())]
    refused = 0
    for _ in range(CONFIGS):
        cls = chance.choice([*classes, TrainConfig])
        names = chance.sample([*cls.model_fields, "nothing"], k=min(2, 1 + len(cls.model_fields)))
        options = {name: chance.choice(JUNK) for name in names}
        refused += outcome(lambda cls=cls, options=options: cls.parse(options, "test")) is None
    assert refused > CONFIGS / 2


def test_a_made_up_run_is_refused_or_resumed(run, monkeypatch, capsys):
    """run.json, from which the command line resumes. What it says is checked before anything is trained."""
    monkeypatch.setattr(vaezoo.trainer, "train", lambda *args, **kwargs: Run(None))
    path, chance, codes = run / "run.json", random.Random(1), []
    original = json.loads(path.read_text())
    for _ in range(RUNS):
        path.write_text(json.dumps(made_up(original, chance)))
        codes.append(main(["train", "--resume", str(run), "--device", "cpu"]))
        said = capsys.readouterr().err
        assert (codes[-1] == 2) == said.startswith("vaezoo train: ")
    assert {*codes} == {0, 2}
