"""Images from one file or from memory, in the layouts that people have. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vaezoo.data.splits import Factor, ImageData, ResidentSplit, Share, assemble
from vaezoo.errors import DataError, unknown

Layout = Literal["NCHW", "NHWC"]
Kind = Literal["categorical", "ordinal", "continuous", "circular"]
Array: TypeAlias = "np.ndarray[Any, Any] | Tensor"

#: Names under which the arrays of a file are known: dSprites, shapes3d, MedMNIST, Keras, plain `np.savez`.
KEYS = {
    "images": ("images", "imgs", "x", "x_train", "train_images", "arr_0"),
    "labels": ("labels", "label", "y", "y_train", "train_labels"),
    "factors": ("factors", "latents_classes", "latents"),
    "validation_images": ("validation_images", "val_images", "x_val"),
    "validation_labels": ("validation_labels", "val_labels", "y_val"),
    "validation_factors": ("validation_factors", "val_factors"),
    "test_images": ("test_images", "x_test"),
    "test_labels": ("test_labels", "y_test"),
    "test_factors": ("test_factors",),
}

#: Values converted at a time, so that a file need not fit into memory twice.
CHUNK = 2**24


def image_file(
    seed: int = 0,
    *,
    path: Annotated[Path, Field(strict=False)],
    layout: Layout | None = None,
    factors: dict[str, Kind] | None = None,
    validation: Share = 0.1,
    test: Share = 0.1,
) -> ImageData:
    """Images, and labels or factors if there are any, from .npz, .h5, .hdf5, .pt or .safetensors.

    The arrays are found by name (`KEYS`); images are as in `image_array`. Labels are integers [N]; an array
    [N, F] holds factors, also under the name of labels. Splits that the file does not have are carved out of
    its images.

    Args:
        seed: draws the splits.
        path: the file. A .pt file holds a tensor or a dict of tensors, and is read with weights_only=True.
        layout: order of the axes, where the shape leaves it open.
        factors: name and kind ("categorical", "ordinal", "circular", "continuous") of every column of the
            factors; None: `factor_0`, ..., categorical if they are integers, else continuous. Columns that
            are not continuous are turned into the index of their value.
        validation: number of validation images, or their fraction of what the test split leaves.
        test: number of test images, or their fraction of all.

    Raises:
        DataError: no file, a file of another kind or damaged, a pickle, no images in it, or images that
            `image_array` refuses.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(unknown("kind of image file", path.suffix, READERS))
    try:
        content = reader(path)
    except DataError:
        raise
    except Exception as error:  # damaged files make their readers fail in any way
        raise DataError(
            f"{path} could not be read: {(str(error).splitlines() or [repr(error)])[0]}"
        ) from error
    if "images" not in content:
        raise DataError(f"{path} holds no images; they are looked for under {', '.join(KEYS['images'])}")
    return _from_arrays(content, str(path), seed, layout, factors, validation, test)


def image_array(
    seed: int = 0,
    *,
    images: Array,
    layout: Layout | None = None,
    validation: Share = 0.1,
    test: Share = 0.1,
) -> ImageData:
    """Images in memory.

    Args:
        seed: draws the splits.
        images: [N, H, W], [N, C, H, W] or [N, H, W, C] with C = 1 or 3; integers in 0..255 (or all 0 or 1, as
            booleans), or floats in [0, 1], which are rounded to 256 levels. uint8 [N, C, H, W] is used as it
            is, without a copy.
        layout: "NCHW" or "NHWC", needed where both fit the shape.
        validation: number of validation images, or their fraction of what the test split leaves.
        test: number of test images, or their fraction of all.

    Raises:
        DataError: a shape that is none of these or leaves the layout open, values out of range or not finite.
    """
    return _from_arrays({"images": images}, "the array", seed, layout, None, validation, test)


def to_uint8(images: Any, layout: Layout | None, where: str) -> Tensor:
    """Images as uint8 [N, C, H, W]; see `image_array`. `images` is an array, or gives one for a slice."""
    shape = tuple(images.shape)
    axes = _axes(shape, layout, where)
    in_memory = isinstance(images, Tensor | np.ndarray)
    step = max(1, CHUNK // int(np.prod(shape[1:])))
    if in_memory and images.dtype in (torch.uint8, np.uint8):
        step = shape[0]  # nothing to convert, so perhaps nothing to copy
    result: Tensor | None = None
    highest = 0
    for start in range(0, shape[0], step):
        chunk = _levels(_tensor(images[start : start + step], where), start, where)
        highest = max(highest, int(chunk.max()))
        chunk = chunk.permute(axes) if axes else chunk.unsqueeze(1)
        if len(chunk) == shape[0]:
            result = chunk.contiguous()
            break
        if result is None:
            result = torch.empty(shape[0], *chunk.shape[1:], dtype=torch.uint8, device=chunk.device)
        result[start : start + step] = chunk
    assert result is not None  # _axes refuses empty arrays
    is_binary = highest <= 1 and not _tensor(images[:1], where).is_floating_point()
    return result * 255 if is_binary else result


def _tensor(array: Any, where: str) -> Tensor:
    """An array as a tensor that shares its memory where torch can read it."""
    if isinstance(array, Tensor):
        return array.detach()
    array = np.asarray(array)
    if array.dtype.kind not in "uifb":
        raise DataError(f"{where} holds {array.dtype}, not numbers")
    # torch wants the machine's byte order, strides above 0, memory it may write to, and few unsigned types.
    wide = array.dtype.kind == "u" and array.itemsize > 1
    array = np.ascontiguousarray(array, dtype=np.int64 if wide else array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _levels(images: Tensor, start: int, where: str) -> Tensor:
    """Grey levels 0..255 of images of any type; the first image is number `start`, for messages."""
    if images.dtype in (torch.uint8, torch.bool):
        return images.byte()
    is_float = images.is_floating_point()
    fine = ((images >= 0) & (images <= (1 if is_float else 255))).flatten(1).all(1)  # False for NaN
    if not fine.all():
        bad = int(fine.int().argmin())
        low, high = float(images[bad].min()), float(images[bad].max())
        rule = "floats must be in [0, 1]" if is_float else "integers must be in 0..255"
        raise DataError(f"image {start + bad} of {where} has values from {low:g} to {high:g}; {rule}")
    return (images.float().mul(255).round_() if is_float else images).byte()


def _axes(shape: tuple[int, ...], layout: Layout | None, where: str) -> tuple[int, ...] | None:
    """Permutation to [N, C, H, W]; None: there is no axis of channels."""
    if len(shape) not in (3, 4) or 0 in shape:
        raise DataError(
            f"images must be [N, H, W], [N, C, H, W] or [N, H, W, C], but {where} has shape {list(shape)}"
        )
    if len(shape) == 3:
        return None
    fitting = [name for name, axis in (("NCHW", 1), ("NHWC", 3)) if shape[axis] in (1, 3)]
    if layout is not None and layout not in fitting:
        raise DataError(f"layout={layout} does not fit the shape {list(shape)} of {where}: C must be 1 or 3")
    if layout is None and len(fitting) != 1:
        problem = "may be NCHW as well as NHWC; give layout=" if fitting else "has no axis of 1 or 3 channels"
        raise DataError(f"the shape {list(shape)} of {where} {problem}{' or '.join(fitting)}")
    return (0, 1, 2, 3) if (layout or fitting[0]) == "NCHW" else (0, 3, 1, 2)


def _from_arrays(
    content: Mapping[str, Any],
    where: str,
    seed: int,
    layout: Layout | None,
    declared: dict[str, Kind] | None,
    validation: Share,
    test: Share,
) -> ImageData:
    parts = [part for part in ("", "validation_", "test_") if f"{part}images" in content]
    labels, factors = {}, {}
    for part in parts:
        values = {
            kind: content[f"{part}{kind}"] for kind in ("labels", "factors") if f"{part}{kind}" in content
        }
        for kind, array in values.items():
            array = _tensor(array, f"{part}{kind} of {where}")
            array = (
                array.squeeze(1) if kind == "labels" and array.ndim == 2 and array.shape[1] == 1 else array
            )
            if array.ndim not in (1, 2) or len(array) != len(content[f"{part}images"]):
                raise DataError(
                    f"{part}{kind} of {where} have shape {list(array.shape)}, "
                    f"but there are {len(content[f'{part}images'])} {part}images"
                )
            if array.ndim == 2:
                factors[part] = array
            elif kind == "labels" and not array.is_floating_point():
                labels[part] = array.long()
            else:
                raise DataError(
                    f"{part}{kind} of {where} must be integers [N] (labels) or a table [N, F] (factors)"
                )
    columns, tables = _factors(factors if len(factors) == len(parts) else {}, declared, where)
    labels = labels if len(labels) == len(parts) else {}
    splits = {
        part: ResidentSplit(
            to_uint8(content[f"{part}images"], layout, f"{part}images of {where}" if part else where),
            labels.get(part),
            tables.get(part),
        )
        for part in parts
    }
    return assemble(
        seed,
        splits[""],
        validation=splits.get("validation_", validation),
        test=splits.get("test_", test),
        factors=columns,
    )


def _factors(
    tables: Mapping[str, Tensor], declared: dict[str, Kind] | None, where: str
) -> tuple[tuple[Factor, ...], dict[str, Tensor]]:
    """Factors of the columns, and the tables of the parts with values replaced by their indices."""
    if not tables:
        if declared is not None:
            raise DataError(
                f"factors are declared, but {where} has no table of factors for all of its images"
            )
        return (), {}
    values = torch.cat(list(tables.values()))
    default: Kind = "continuous" if values.is_floating_point() else "categorical"
    kinds = declared or {f"factor_{i}": default for i in range(values.shape[1])}
    if len(kinds) != values.shape[1]:
        raise DataError(
            f"{len(kinds)} factors are declared ({', '.join(kinds)}), but {where} has {values.shape[1]}"
        )
    columns, factors = [], []
    for (name, kind), column in zip(kinds.items(), values.unbind(1)):
        if kind == "continuous":
            if not column.isfinite().all():
                bad = int(column.isfinite().int().argmin())
                raise DataError(f"factor {name} of {where} is not finite for image {bad}")
            columns.append(column.float())
            factors.append(Factor(name, 0, kind))
        else:
            distinct, index = column.unique(return_inverse=True)
            columns.append(index)
            factors.append(Factor(name, len(distinct), kind))
    table = torch.stack(columns, 1)  # float if one of them is
    sizes = [len(part) for part in tables.values()]
    return tuple(factors), dict(zip(tables, table.split(sizes)))


def _named(content: Any) -> dict[str, Any]:
    """The arrays of a file by their role, whatever their names; only those are read."""
    found = {}
    for role, names in KEYS.items():
        for name in names:
            if name in content:
                found[role] = content[name]
                break
    return found


def _read_npz(path: Path) -> dict[str, Any]:
    # allow_pickle=False: an array of objects is a pickle, and reading one runs what is in it.
    with np.load(path, allow_pickle=False) as content:
        return _named(content)


def _read_h5(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path, "r") as content:
        found = _named(content)
        # Images are converted while they are read; all the rest is small.
        return {
            role: _H5Images(path, values.name, values.shape) if role.endswith("images") else values[:]
            for role, values in found.items()
        }


class _H5Images:
    """A dataset in an HDF5 file, read slice by slice."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...]) -> None:
        self.path, self.name, self.shape = path, name, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray[Any, Any]:
        import h5py

        with h5py.File(self.path, "r") as content:
            chunk: np.ndarray[Any, Any] = content[self.name][rows]
        return chunk


def _read_pt(path: Path) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return {"images": content} if isinstance(content, Tensor) else _named(content)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return _named(load_file(path))


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": _read_npz,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".pt": _read_pt,
    ".safetensors": _read_safetensors,
}
