"""Checkpoints: one safetensors file that names, configures and fills a model. Nothing in it is ever executed.

The file's metadata holds a JSON header {schema, vaezoo, model, config, prior, info, checksum}; the tensors
are the state dict, with the prior's under "prior.". One file, so that writing it can be atomic.

Beside it, priors/NAME.safetensors each hold one prior of the model, with the header {schema, vaezoo, prior,
weights, info}: `weights` identifies the weights of the model that the prior belongs to.
"""

from __future__ import annotations

import hashlib
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
from vaezoo.errors import CheckpointError, VaezooError, unknown
from vaezoo.hub import fetch, is_address
from vaezoo.priors import PRIORS, Prior
from vaezoo.registry import MODELS

SCHEMA = 1
WEIGHTS = "model.safetensors"
PRIORS_FOLDER = "priors"
REPORT = "report.json"


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


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left in a folder."""
    for written in ("safetensors", "json", "jsonl"):  # by the names of `_atomically`, and no others
        for temporary in folder.glob(f".*.{written}.[0-9]*.tmp"):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old or the new one is there, whole."""
    with _atomically(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in the same way."""
    write_bytes(path, text.encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header as one safetensors file, atomically."""
    with _atomically(path) as temporary:
        flat = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
        temporary.touch()
        permissions = temporary.stat().st_mode
        whole = {**header, "checksum": _checksum(header, flat)}
        # One entry, since safetensors writes several in any order.
        save_file(flat, temporary, metadata={"vaezoo": json.dumps(whole)})
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
    if not isinstance(header, dict) or type(header.get("schema")) is not int or header["schema"] < 1:
        raise CheckpointError(f"{path} has a damaged header")
    if header["schema"] > SCHEMA:
        raise CheckpointError(
            f"{path} has schema {header['schema']}, this version of vaezoo reads up to {SCHEMA}; "
            f"it was written by vaezoo {header.get('vaezoo')}: install that version or a later one"
        )
    return header


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a file written by `write_tensors`, if it is still what was written."""
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    # Files from before there were checksums have none.
    if "checksum" in header and header["checksum"] != _checksum(header, tensors):
        raise CheckpointError(f"{path} is damaged: by its checksum, its content is not what was written")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of tensors and header. It finds what a disk or a network has changed, and protects against no one who
    means harm."""
    text = json.dumps({key: value for key, value in header.items() if key != "checksum"})
    return hashlib.sha256(f"{text} {fingerprint(tensors)}".encode()).hexdigest()[:16]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits that identify tensors by their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """`fingerprint` of a model's state dict without its prior: what the model's latents depend on."""
    return fingerprint({name: t for name, t in tensors.items() if not name.startswith("prior.")})


def model_header(model: Autoencoder, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All of a checkpoint but its tensors: registered name, config, prior, and `info`."""
    return {
        "schema": SCHEMA,
        "vaezoo": __version__,
        "model": MODELS.name_of(type(model)),
        "config": model.config.model_dump(mode="json"),
        "prior": None if model.prior is None else _prior_header(model.prior),
        "info": dict(info or {}),
    }


def _prior_header(prior: Prior) -> dict[str, Any]:
    return {
        "name": PRIORS.name_of(type(prior)),
        "config": prior.config.model_dump(mode="json"),
        "fitted": prior.fitted,
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


def save_prior(model: Autoencoder, path: str | Path, info: Mapping[str, Any] | None = None) -> Path:
    """Write a model's prior alone beside the model's weights, for `load(path, prior=NAME)`.

    Args:
        model: a registered model with a prior.
        path: the run folder or the file of the model's weights; the prior goes to priors/NAME.safetensors.
        info: as in `save`.
    """
    prior = model.require_prior()
    described = _prior_header(prior)
    header = {
        "schema": SCHEMA,
        "vaezoo": __version__,
        "prior": described,
        "weights": weights_fingerprint(model.state_dict()),
        "info": dict(info or {}),
    }
    file = prior_file(path, described["name"])
    write_tensors(file, prior.state_dict(), header)
    return file


def load(
    path: str | Path, device: torch.device | str = "cpu", *, prior: str | None = None, **modules: nn.Module
) -> Autoencoder:
    """Restore a model, its config and its prior.

    Args:
        path: a run folder, a .safetensors file, or "hf://user/name" on the Hugging Face hub, which needs
            `pip install 'vaezoo[hub]'`; "hf://user/name@revision" is a branch, tag or commit of it.
        device: where to put the model.
        prior: one of the priors that `fit_prior` keeps beside the model, by name (`priors_beside(path)`), the
            model's own included; None: the one that was fitted last.
        **modules: the modules of your own that the model was made with (`encoder=`, `decoder=`).

    Raises:
        CheckpointError: the file is missing, damaged, foreign, or does not fit this version or those modules;
            there is no such prior, or it belongs to other weights. Nothing in a file is executed.
    """
    if is_address(path):
        path = fetch(str(path), [WEIGHTS, *([f"{PRIORS_FOLDER}/*.safetensors"] if prior else [])])
    path = weights_file(path)
    header, beside = run_header(path, prior)
    where = path if beside is None else f"{path} with {beside}"
    try:
        config, described = header["config"], header["prior"]
        # First without memory, so that the file's own shapes find out a header that claims a huge model.
        with torch.device("meta"):
            expected = _build(header["model"], config, described, modules).state_dict()
        _check_shapes(path, beside, expected)
        model = _build(header["model"], config, described, modules)
        model.load_state_dict(_read_both(path, beside))
        model.initialized = True
    except CheckpointError:
        raise
    except VaezooError as error:
        raise CheckpointError(f"{where} cannot be loaded: {error}") from None
    except Exception as error:  # what a header says may make a model fail in any way
        first_line = str(error).split("\n")[0]
        raise CheckpointError(f"{where} cannot be loaded: {type(error).__name__}: {first_line}") from error
    return model.to(device).eval()


def run_header(path: str | Path, prior: str | None = None) -> tuple[dict[str, Any], Path | None]:
    """The header of a run's weights, as it is with one of the priors beside them; and the file of that prior,
    None where it is the one within the weights' own file.

    Raises:
        CheckpointError: as in `load`, as far as headers tell.
    """
    path = weights_file(path)
    header = read_header(path)
    if "weights" in header:
        raise CheckpointError(
            f"{path} is a prior without its model; load both by the run's folder: vaezoo.load(run, "
            f"prior={path.stem!r})"
        )
    if prior is None or _name(header) == prior:
        return header, None
    if prior not in (there := priors_beside(path)):
        raise CheckpointError(
            f"{unknown(f'prior of {path.parent}', prior, {*there, _name(header)} - {''})}; fit one with "
            f"vaezoo.fit_prior(..., out=...), or `vaezoo fit-prior {path.parent} --prior NAME`"
        )
    file = prior_file(path, prior)
    found, tensors = read_header(file), read_tensors(path)
    if not all(
        isinstance(part, dict) for part in (found.get("prior"), found.get("info"), header.get("info"))
    ):
        raise CheckpointError(f"{file} or {path} has a damaged header")
    if found.get("weights") != weights_fingerprint(tensors):
        raise CheckpointError(
            f"{file} belongs to other weights than those in {path.name}, as after more training; fit the "
            f"prior again: `vaezoo fit-prior {path.parent} --prior {prior}`"
        )
    # What was said about the fit of the prior that is in the weights' file says nothing about this one.
    info = {**header["info"], "prior_train": {}, **found["info"]}
    return {**header, "prior": found["prior"], "info": info}, file


def _name(header: Mapping[str, Any]) -> str:
    """Of the prior in a header; "" where there is none, or none that makes sense."""
    prior = header.get("prior")
    return str(prior.get("name", "")) if isinstance(prior, dict) else ""


def _read_both(path: Path, beside: Path | None) -> dict[str, Tensor]:
    """The tensors of a model; with a file beside it, that file's prior in place of the model's."""
    tensors = read_tensors(path)
    if beside is not None:
        tensors = {name: t for name, t in tensors.items() if not name.startswith("prior.")}
        tensors |= {f"prior.{name}": t for name, t in read_tensors(beside).items()}
    return tensors


def _build(
    name: str, config: dict[str, Any], prior: dict[str, Any] | None, modules: dict[str, nn.Module]
) -> Autoencoder:
    model = MODELS.get(name).from_options({**config, **modules}, where=name)
    if prior is None:
        model.prior = None
    elif prior.get("fitted", True):
        prior_class = PRIORS.get(prior["name"])
        model.prior = prior_class(prior_class.Config.parse(prior["config"], prior["name"]), model.latent)
        model.prior.fitted = True
    elif model.prior is None or PRIORS.name_of(type(model.prior)) != prior["name"]:
        raise CheckpointError(f"model '{name}' with these options does not have the prior '{prior['name']}'")
    return model


def _check_shapes(path: Path, beside: Path | None, expected: Mapping[str, Tensor]) -> None:
    found = _shapes(path)
    if beside is not None:
        found = {name: shape for name, shape in found.items() if not name.startswith("prior.")}
        found |= {f"prior.{name}": shape for name, shape in _shapes(beside).items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            file = beside if beside is not None and name.startswith("prior.") else path
            raise CheckpointError(
                f"{file} does not fit its own config: tensor '{name}' is {found.get(name, 'missing')} in the "
                f"file and {wanted.get(name, 'absent')} in the model; a model made with an encoder or "
                "decoder of your own needs them here too: vaezoo.load(path, encoder=..., decoder=...)"
            )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def weights_file(path: str | Path) -> Path:
    """The weights of a run folder, or the file itself."""
    if is_address(path):
        raise VaezooError(
            f"{path} is on the hub; get it into a folder first: vaezoo.save(vaezoo.load('{path}'), folder)"
        )
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / WEIGHTS


def prior_file(path: str | Path, name: str) -> Path:
    """Where the prior of a name is kept beside the weights of a run."""
    return prior_folder(path, name).with_name(f"{name}.safetensors")


def prior_folder(path: str | Path, name: str) -> Path:
    """Where what else there is about that prior goes: the log and state of its fit, and its report."""
    return weights_file(path).parent / PRIORS_FOLDER / name


def priors_beside(path: str | Path) -> list[str]:
    """Names of the priors that are kept beside the weights of a run."""
    folder = weights_file(path).parent / PRIORS_FOLDER
    return sorted(file.stem for file in folder.glob("*.safetensors"))


def describe_priors(path: str | Path) -> dict[str, str]:
    """Of each prior that is kept beside the weights of a run, whether `load` takes it or else why not."""
    said = {}
    for name in priors_beside(path):
        try:
            run_header(path, name)
            said[name] = "ready"
        except CheckpointError as error:
            said[name] = str(error)
    return said
