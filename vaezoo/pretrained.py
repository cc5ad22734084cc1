"""Trained weights by name: `vaezoo.create("vae", pretrained="fashion_mnist")`.

The manifest names every file with its SHA-256. A file is looked for in the package itself, then in the user's
cache, then in a mirror: a folder, or a repository on the Hugging Face hub. `benchmarks/pretrained.py` trains
them and writes the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vaezoo.autoencoder import Autoencoder
from vaezoo.checkpoint import load, read_header, write_bytes
from vaezoo.errors import CheckpointError, VaezooError, unknown
from vaezoo.hub import fetch, is_address

PACKAGED = Path(__file__).parent / "weights"
MANIFEST = PACKAGED / "manifest.json"
#: Environment variables: the folder of the cache, and a folder or hf://user/name with more weights.
CACHE, MIRROR = "VAEZOO_CACHE", "VAEZOO_MIRROR"


@dataclass(frozen=True)
class Weights:
    """One file of trained weights, as the manifest describes it.

    Attributes:
        model: registered name.
        data: name of the data set that it was trained on.
        file: name of its file.
        sha256: of that file.
        bytes: its size.
        licence: of the weights.
        recipe: the options that the model and, if it has a fitted one, its prior were trained with.
        scores: {metric: {"value", "se", "n", "unit"}}, measured on this file.
    """

    model: str
    data: str
    file: str
    sha256: str
    bytes: int
    licence: str
    recipe: dict[str, Any]
    scores: dict[str, dict[str, Any]]


@cache
def manifest() -> dict[tuple[str, str], Weights]:
    """All trained weights, by model and data set."""
    entries = [Weights(**entry) for entry in json.loads(MANIFEST.read_text(encoding="utf-8"))]
    return {(entry.model, entry.data): entry for entry in entries}


def data_of(model: str) -> list[str]:
    """The data sets for which there are trained weights of a model."""
    return sorted(data for name, data in manifest() if name == model)


def find(model: str, data: str) -> Weights:
    """The entry of the manifest.

    Raises:
        VaezooError: there are no such weights.
    """
    if (model, data) not in manifest():
        raise VaezooError(unknown(f"pretrained weights of {model}", data, data_of(model)))
    return manifest()[model, data]


def weights_path(weights: Weights) -> Path:
    """Where the file is: in the package, in the cache, or put there from the mirror.

    Raises:
        VaezooError: it is in none of them, or the mirror cannot be reached.
        CheckpointError: what the mirror has under that name is another file.
    """
    folder = os.environ.get(CACHE)
    cached = (Path(folder) if folder else Path.home() / ".cache" / "vaezoo") / weights.file
    for path in (PACKAGED / weights.file, cached):
        if path.is_file() and _sha256(path.read_bytes()) == weights.sha256:
            return path
    mirror = os.environ.get(MIRROR)
    if not mirror:
        raise VaezooError(
            f"the weights {weights.file} ({weights.bytes / 1e6:.1f} MB) are neither in the package nor in "
            f"{cached.parent}; set {MIRROR} to a folder or to an address hf://user/name that has them"
        )
    found = (fetch(mirror, [weights.file]) if is_address(mirror) else Path(mirror)) / weights.file
    try:
        content = found.read_bytes()
    except OSError as error:
        raise VaezooError(f"the mirror {mirror} has no {weights.file}: {error.strerror}") from None
    if _sha256(content) != weights.sha256:
        raise CheckpointError(
            f"{found} is not the file that the manifest names: its SHA-256 is {_sha256(content)}, and should "
            f"be {weights.sha256}"
        )
    write_bytes(cached, content)
    return cached


def restore(model: str, data: str, options: Mapping[str, Any]) -> Autoencoder:
    """A trained model on the CPU, in eval mode and single precision.

    Args:
        model: registered name.
        data: the data set that it was trained on.
        options: what the caller expects of its config.

    Raises:
        VaezooError: there are no such weights, they are not at hand, or were trained with other options.
    """
    path = weights_path(find(model, data))
    config = read_header(path)["config"]
    for name, value in json.loads(json.dumps(dict(options), default=repr)).items():
        if name not in config:
            raise VaezooError(unknown(f"option of pretrained {model}", name, config))
        if value != config[name]:
            raise VaezooError(
                f"{name}={value!r} does not go with pretrained='{data}', which was trained with "
                f"{name}={config[name]!r}; leave it out, or train anew"
            )
    return load(path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
