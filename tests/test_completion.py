"""What the shell offers after TAB, asked as the scripts of `register-python-argcomplete` ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vaezoo
from vaezoo.cli import COMPLETED_FEATURES
from vaezoo.evaluation.features import NAMES
from vaezoo.priors import PRIORS
from vaezoo.registry import DATASETS

pytest.importorskip("argcomplete", reason="argcomplete, which completes the command line, is not installed")

#: The program that a shell calls, and on stderr the modules that an answer takes.
PROGRAM = """
import atexit, os, sys
from vaezoo.cli import main
atexit.register(lambda: sys.stderr.write(" ".join(sys.modules)))
os._exit = sys.exit  # argcomplete ends the process without a last word
main()
"""


def offered(line: str, folder: Path, shell: str = "bash") -> list[str]:
    """The words that a shell is offered with the cursor at the end of `line`; none of them takes torch."""
    answer = folder / "answer"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(vaezoo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": shell,
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "vaezoo.cli" in done.stderr.split()
    assert not {"torch", "numpy", "pydantic", "vaezoo.autoencoder"} & set(done.stderr.split())
    return [word.strip() for word in answer.read_text().splitlines()]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vaezoo trav", ["traverse"]),
        ("vaezoo train ", vaezoo.list_models()),
        ("vaezoo train beta_", vaezoo.list_models("beta_*")),
        ("vaezoo train --epochs 1 vq", vaezoo.list_models("vq*")),
        ("vaezoo train vae beta", []),
        ("vaezoo train vae --data ", DATASETS.names()),
        ("vaezoo train vae --data fash", ["fashion_mnist"]),
        ("vaezoo train vae --bina", ["--binarize"]),
        ("vaezoo train vae --binarize ", ["none", "static", "dynamic"]),
        ("vaezoo train vae --device cu", ["cuda"]),
        ("vaezoo fit-prior runs/vae --prior ", PRIORS.names()),
        ("vaezoo evaluate runs/vae --split v", ["validation"]),
        ("vaezoo evaluate runs/vae --prior ", ["flow", "vamp"]),
        ("vaezoo sample runs/vae/model.safetensors --prior f", ["flow"]),
        ("vaezoo evaluate runs/vae --features fa", ["fashion_mnist"]),
        ("vaezoo export runs/vae --format ", ["onnx", "torch"]),
        ("vaezoo compare ae conv", ["conv_vae"]),
        ("vaezoo info vq_vae", ["vq_vae", "vq_vae2"]),
        ("vaezoo list fac", ["factor_vae"]),
        ("vaezoo info ru", ["runs/"]),
        ("vaezoo evaluate runs/", ["runs/vae/"]),
        ("vaezoo train vae --data pict", ["pictures.npz"]),
    ],
)
def test_words_after_tab(line: str, words: list[str], tmp_path: Path) -> None:
    priors = tmp_path / "runs" / "vae" / "priors"
    priors.mkdir(parents=True)
    for file in (priors / "flow.safetensors", priors / "vamp.safetensors", tmp_path / "pictures.npz"):
        file.touch()
    assert sorted(offered(line, tmp_path)) == sorted(words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_is_answered(shell: str, tmp_path: Path) -> None:
    words = offered("vaezoo train beta_tc", tmp_path, shell)
    assert [word.partition(":")[0].partition("\t")[0] for word in words] == ["beta_tc_vae"]


def test_features_are_those_of_the_evaluation() -> None:
    assert set(COMPLETED_FEATURES) == set(NAMES)
