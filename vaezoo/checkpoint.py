"""Checkpoints: one safetensors file that names, configures and fills a model. Nothing in it is ever executed.

The file's metadata holds a JSON header {schema, vaezoo, model, config, prior, info}; the tensors are the
state dict, with the prior's under "prior.". One file, so that writing it can be atomic.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vaezoo import __version__
from vaezoo.autoencoder import Autoencoder
from vaezoo.errors import CheckpointError, VaezooError
from vaezoo.priors import PRIORS
from vaezoo.registry import MODELS, create

SCHEMA = 1
WEIGHTS = "model.safetensors"


@contextmanager
def _atomically(path: Path) -> Iterator[Path]:
    """Gives a temporary file to write; only when that is whole does it take the place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not write {path}: {error}; the previous file, if any, is intact"
        ) from error
    finally:
        with suppress(OSError):  # gone already, or its folder could not be made
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file so that at every moment either the old or the new one is there, whole."""
    with _atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header as one safetensors file, atomically."""
    with _atomically(path) as temporary:
        flat = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
        temporary.touch()
        permissions = temporary.stat().st_mode
        save_file(flat, temporary, metadata={"vaezoo": json.dumps(header)})
        temporary.chmod(permissions)  # save_file leaves the file to its owner alone, whatever the umask


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a file written by `write_tensors`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None
    if "vaezoo" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but vaezoo did not write it")
    try:
        header = json.loads(metadata["vaezoo"])
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} has a damaged header") from None
    if not isinstance(header, dict) or not isinstance(header.get("schema"), int):
        raise CheckpointError(f"{path} has a damaged header")
    if header["schema"] > SCHEMA:
        raise CheckpointError(
            f"{path} has schema {header['schema']}, this version of vaezoo reads up to {SCHEMA}; "
            f"it was written by vaezoo {header.get('vaezoo')}: install that version or a later one"
        )
    return header


def read_tensors(path: Path, device: torch.device | str = "cpu", prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {
                name[len(prefix) :]: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - the file itself is not iterable
                if name.startswith(prefix)
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def model_header(model: Autoencoder, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All of a checkpoint but its tensors: registered name, config, prior, and `info`."""
    prior = None
    if model.prior is not None:
        prior = {
            "name": PRIORS.name_of(type(model.prior)),
            "config": model.prior.config.model_dump(mode="json"),
            "fitted": model.prior.fitted,
        }
    return {
        "schema": SCHEMA,
        "vaezoo": __version__,
        "model": MODELS.name_of(type(model)),
        "config": model.config.model_dump(mode="json"),
        "prior": prior,
        "info": dict(info or {}),
    }


def save(model: Autoencoder, path: str | Path, info: Mapping[str, Any] | None = None) -> Path:
    """Write a model with its config and prior.

    Args:
        model: a registered model.
        path: a file name ending in .safetensors, or a folder, in which the file is model.safetensors.
        info: anything JSON can hold, kept in the header (data, recipe, scores).

    Raises:
        CheckpointError: the file cannot be written; a previous one is left as it was.
    """
    path = weights_file(path)
    write_tensors(path, model.state_dict(), model_header(model, info))
    return path


def load(path: str | Path, device: torch.device | str = "cpu", **modules: nn.Module) -> Autoencoder:
    """Restore a model, its config and its prior.

    Args:
        path: a run folder or a .safetensors file.
        device: where to put the model.
        **modules: the modules of your own that the model was made with (`encoder=`, `decoder=`).

    Raises:
        CheckpointError: the file is missing, damaged, foreign, or does not fit this version or those modules.
            Nothing in the file is executed.
    """
    path = weights_file(path)
    header = read_header(path)
    try:
        config, prior = header["config"], header["prior"]
        # First without memory, so that the file's own shapes find out a header that claims a huge model.
        with torch.device("meta"):
            expected = _build(header["model"], config, prior, modules).state_dict()
        _check_shapes(path, expected)
        model = _build(header["model"], config, prior, modules)
        model.load_state_dict(read_tensors(path))
    except CheckpointError:
        raise
    except VaezooError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        first_line = str(error).split("\n")[0]
        raise CheckpointError(f"{path} cannot be loaded: {type(error).__name__}: {first_line}") from None
    return model.to(device).eval()


def _build(
    name: str, config: dict[str, Any], prior: dict[str, Any] | None, modules: dict[str, nn.Module]
) -> Autoencoder:
    model = create(name, **config, **modules)
    if prior is None:
        model.prior = None
    elif prior.get("fitted", True):
        prior_class = PRIORS.get(prior["name"])
        model.prior = prior_class(prior_class.Config.parse(prior["config"], prior["name"]), model.latent)
        model.prior.fitted = True
    elif model.prior is None or PRIORS.name_of(type(model.prior)) != prior["name"]:
        raise CheckpointError(f"model '{name}' with these options does not have the prior '{prior['name']}'")
    return model


def _check_shapes(path: Path, expected: Mapping[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{path} does not fit its own config: tensor '{name}' is {found.get(name, 'missing')} in the "
                f"file and {wanted.get(name, 'absent')} in the model; a model made with an encoder or "
                "decoder of your own needs them here too: vaezoo.load(path, encoder=..., decoder=...)"
            )


def weights_file(path: str | Path) -> Path:
    """The weights of a run folder, or the file itself."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / WEIGHTS
