"""Data: sets by name, from files or from tensors; splits, binarisation and loading.

data = load_data("mnist", binarize="dynamic", device="cuda")
for batch in Loader(data.train, 100, seed=0).epoch(0): ...   # float32 [100, 1, 28, 28] in [0, 1]
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pydantic
import torch

from vaezoo.config import BaseConfig
from vaezoo.data.loader import Loader
from vaezoo.data.splits import Binarize, Factor, ImageData, ResidentSplit, Split, assemble, carve
from vaezoo.errors import DataError, unknown
from vaezoo.registry import DATASETS

__all__ = [
    "DATASETS",
    "Factor",
    "ImageData",
    "Loader",
    "ResidentSplit",
    "Split",
    "assemble",
    "carve",
    "data_root",
    "load_data",
]

#: Files that `image_file` reads.
FILE_SUFFIXES = (".npz", ".h5", ".hdf5", ".pt", ".safetensors")


def data_root(root: str | Path | None = None) -> Path:
    """Folder of the data sets: the argument, else $VAEZOO_DATA, else `vaezoo` in the user's cache folder."""
    if root is None:
        root = (
            os.environ.get("VAEZOO_DATA") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vaezoo"
        )
    return Path(root).expanduser()


def load_data(
    source: str | Path | torch.Tensor | np.ndarray[Any, Any] | ImageData,
    *,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    binarize: Binarize = "none",
    seed: int = 0,
    **options: Any,
) -> ImageData:
    """Load a data set.

    Args:
        source: a registered name (see `DATASETS.names()`); a file (.npz, .h5, .pt, .safetensors), shards
            (.tar) or a folder of images; images [N, C, H, W], [N, H, W, C] or [N, H, W], uint8 or floats in
            [0, 1]; or an `ImageData`, which comes back as it is.
        root: folder of the data sets; None: see `data_root`.
        device: where the images are kept and batches are made.
        binarize: "none"; "static": every split is drawn once from Bernoulli(grey level); "dynamic": train is
            drawn anew in every batch, validation and test once (as in Norouzi et al. 2020).
        seed: draws the splits and the binarisation.
        **options: options of the data set.

    Raises:
        DataError: data that is missing, damaged or of the wrong shape.
        VaezooError: an unknown name or option, or a value out of range.
    """
    if binarize not in get_args(Binarize):
        raise DataError(unknown("binarize", binarize, get_args(Binarize)))
    if isinstance(source, ImageData):
        if options or binarize != "none":
            given = ", ".join([*options, *(["binarize"] if binarize != "none" else [])])
            raise DataError(f"'{source.name}' is loaded already; give {given} where it is loaded, not here")
        return source
    name, function, fixed = _find(source)
    parameters = inspect.signature(function).parameters
    fixed |= {key: value for key, value in (("root", data_root(root)), ("seed", seed)) if key in parameters}
    settings = _options(function, name, fixed, options)
    data = function(**fixed, **{key: getattr(settings, key) for key in type(settings).model_fields})
    data = replace(data, name=name, seed=seed, options=settings.model_dump(mode="json"))
    return data.binarized(binarize).to(device)


def _find(source: Any) -> tuple[str, Callable[..., ImageData], dict[str, Any]]:
    """Name, function and first argument of a data set that is given by its name, by a path or as an array."""
    if isinstance(source, torch.Tensor | np.ndarray):
        from vaezoo.data.files import image_array

        return type(source).__name__.lower(), image_array, {"images": source}
    if not isinstance(source, str | Path):
        raise DataError(f"data is given by name, path, tensor or array, not by {type(source).__name__}")
    name, path = str(source), Path(source).expanduser()
    if isinstance(source, str) and source in DATASETS.names():
        return name, DATASETS.get(source), {}
    if path.is_dir():
        return name, DATASETS.get("image_folder"), {"path": path}
    if path.suffix.lower() == ".tar":  # perhaps a pattern of many
        return name, DATASETS.get("webdataset"), {"path": path}
    if path.suffix.lower() in FILE_SUFFIXES:
        return name, DATASETS.get("image_file"), {"path": path}
    if isinstance(source, Path) or os.sep in source or path.exists():
        known = ", ".join((".tar", *FILE_SUFFIXES))
        raise DataError(
            f"{path} is neither a folder of images nor one of the files that can be read ({known})"
        )
    return name, DATASETS.get(name), {}  # raises, and names the closest match


def _options(
    function: Callable[..., ImageData], name: str, fixed: dict[str, Any], options: dict[str, Any]
) -> BaseConfig:
    """Options of a data set, defaults included, checked against the type hints of its function."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        key: (hints.get(key, Any), ... if parameter.default is parameter.empty else parameter.default)
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in fixed and not key.startswith("_")
    }
    missing = [key for key, (_, default) in fields.items() if default is ... and key not in options]
    if missing:
        raise DataError(f"{name} needs the option {missing[0]}; its options are: {', '.join(fields)}")
    return pydantic.create_model(f"{name} options", __base__=BaseConfig, **fields).parse(options, name)
