"""Image files: decoded once into memory if they fit, else when a batch asks for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from vaezoo.data.splits import ImageData, ResidentSplit, Share, Split, assemble
from vaezoo.errors import DataError

T = TypeVar("T")


def image_folder(
    seed: int = 0,
    *,
    path: Annotated[Path, Field(strict=False)],
    size: Annotated[int, Field(ge=1)] | None = None,
    channels: Literal[1, 3] = 3,
    skip_broken: bool = False,
    validation: Share = 0.1,
    test: Share = 0.1,
    memory_limit_gb: Annotated[float, Field(ge=0)] = 4.0,
) -> ImageData:
    """All images below a folder; if every one is in a subfolder, the subfolders are the classes.

    Subfolders `train` and `test` (and perhaps `validation` or `val`), where there are both, are taken as the
    splits. Hidden files are passed over.

    Args:
        seed: draws the splits.
        path: the folder.
        size: resize the shorter side to this many pixels and cut out the centred square; None: images are
            taken as they are and must all have the same size.
        channels: 1 (grey) or 3 (RGB).
        skip_broken: leave out files that are no images or damaged, with a warning; else they are an error.
        validation: number of validation images, or their fraction of what the test split leaves.
        test: number of test images, or their fraction of all.
        memory_limit_gb: keep the decoded images (10^9 bytes a GB) in memory up to this size, else decode them
            when they are asked for.

    Raises:
        DataError: no folder, no images, broken files, or images of different sizes.
    """
    if not path.is_dir():
        raise DataError(f"there is no folder {path}")
    parts = {part: path / part for part in ("train", "validation", "val", "test") if (path / part).is_dir()}
    if not {"train", "test"} <= parts.keys():
        parts = {"train": path}
    files = {part: _files(folder) for part, folder in parts.items()}
    classes = _classes([file.relative_to(parts[part]) for part in files for file in files[part]])

    def split(part: str) -> Split:
        labels = (
            [classes.index(file.relative_to(parts[part]).parts[0]) for file in files[part]]
            if classes
            else None
        )
        return file_split(
            files[part],
            size=size,
            channels=channels,
            labels=None if labels is None else torch.tensor(labels),
            skip_broken=skip_broken,
            memory_limit_gb=memory_limit_gb,
        )

    given = next((part for part in ("validation", "val") if part in parts), None)
    return assemble(
        seed,
        split("train"),
        validation=validation if given is None else split(given),
        test=split("test") if "test" in parts else test,
        classes=tuple(classes),
    )


def _files(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise DataError(f"there are no files in {folder}")
    return files


def _classes(files: Sequence[Path]) -> list[str]:
    return sorted({file.parts[0] for file in files}) if all(len(file.parts) > 1 for file in files) else []


class Decoder:
    """Reads an image file into uint8 [C, H, W].

    Args:
        channels: 1 (grey) or 3 (RGB).
        size: resize the shorter side to this many pixels and cut out the centred square; None: as it is.
        crop: side of a centred square to cut out before that.
    """

    def __init__(self, channels: int, size: int | None = None, crop: int | None = None) -> None:
        self.channels, self.size, self.crop = channels, size, crop

    def __call__(self, file: Path) -> np.ndarray:
        """Raises DataError, which names the file and what is wrong with it."""
        try:
            with Image.open(file) as opened:
                if opened.mode.startswith("I") or opened.mode == "F":
                    raise ValueError(
                        f"more than 8 bits per channel (mode {opened.mode}), which would be cut off"
                    )
                # Photographs may be stored on their side, with a tag that says so.
                image: Image.Image = ImageOps.exif_transpose(opened).convert(
                    "L" if self.channels == 1 else "RGB"
                )
        except Exception as error:  # damaged files make decoders fail in any way
            raise DataError(f"{file}: {error}") from error
        if self.crop is not None:
            left, top = (image.width - self.crop) // 2, (image.height - self.crop) // 2
            image = image.crop((left, top, left + self.crop, top + self.crop))
        if self.size is not None:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.array(image)
        return pixels[None] if self.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


class StreamingSplit(Split):
    """Image files that are read and decoded when they are asked for.

    Args:
        files: the images.
        decode: reads one of them.
        image_shape: (C, H, W) that all must have.
        labels: long [N] or None.
        factors: long [N, F] or None.
        device: where batches go.
    """

    resident = False

    def __init__(
        self,
        files: Sequence[Path],
        decode: Decoder,
        image_shape: tuple[int, int, int],
        labels: Tensor | None = None,
        factors: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.empty(0, device=device).device
        self.image_shape = image_shape
        self._files, self._decode = files, decode
        self._labels, self._factors = (
            values if values is None else values.to(self.device) for values in (labels, factors)
        )

    def __len__(self) -> int:
        return len(self._files)

    def load(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W], on the CPU; runs in the workers of a `Loader`."""
        pixels = self._decode(self._files[index])
        if pixels.shape != self.image_shape:
            raise DataError(_other_size(self._files[index], pixels.shape, self.image_shape))
        return torch.from_numpy(pixels)

    def batch(self, indices: Tensor) -> Tensor:
        return torch.stack([self.load(i) for i in indices.tolist()]).to(self.device).float().div_(255)

    def view(self, indices: Tensor) -> StreamingSplit:
        labels, factors = (
            values if values is None else values[indices.to(self.device)]
            for values in (self._labels, self._factors)
        )
        files = [self._files[i] for i in indices.tolist()]
        return StreamingSplit(files, self._decode, self.image_shape, labels, factors, self.device)

    def to(self, device: torch.device | str) -> StreamingSplit:
        return StreamingSplit(
            self._files, self._decode, self.image_shape, self._labels, self._factors, device
        )

    def binarized(self, noise: torch.Generator | None) -> StreamingSplit:
        raise DataError(
            "images that are decoded when they are asked for cannot be binarised; raise memory_limit_gb to "
            "keep them in memory"
        )

    def content(self, indices: Tensor) -> bytes:
        return b"".join(self.load(i).numpy().tobytes() for i in indices.tolist())


def file_split(
    files: Sequence[Path],
    *,
    channels: int,
    size: int | None = None,
    crop: int | None = None,
    labels: Tensor | None = None,
    factors: Tensor | None = None,
    skip_broken: bool = False,
    memory_limit_gb: float = 4.0,
) -> Split:
    """Image files as a split: resident if the decoded images fit into `memory_limit_gb`, else streaming.

    A resident split decodes every file here, on all cores; a streaming one checks the headers here, which
    finds much of what is broken, and the rest when an image is asked for. Arguments as in `image_folder` and
    `Decoder`.
    """
    decode = Decoder(channels, size, crop)
    shape = _shape(files, decode, size)
    if len(files) * int(np.prod(shape)) > memory_limit_gb * 1e9:
        errors = _on_threads(lambda i: _check_header(files[i], shape, size), len(files))
        kept = _kept(errors, skip_broken)
        names = [files[i] for i in kept.tolist()]
        labels, factors = (values if values is None else values[kept] for values in (labels, factors))
        return StreamingSplit(names, decode, shape, labels, factors)

    images = np.empty((len(files), *shape), dtype=np.uint8)

    def fill(i: int) -> str | None:
        try:
            pixels = decode(files[i])
        except DataError as error:
            return str(error)
        if pixels.shape != shape:
            raise DataError(_other_size(files[i], pixels.shape, shape))
        images[i] = pixels
        return None

    kept = _kept(_on_threads(fill, len(files)), skip_broken)
    return ResidentSplit(torch.from_numpy(images), labels, factors, None if len(kept) == len(files) else kept)


def _shape(files: Sequence[Path], decode: Decoder, size: int | None) -> tuple[int, int, int]:
    """Shape of all images: stated by `size`, else that of the first one that can be decoded."""
    if size is not None:
        return decode.channels, size, size
    for file in files:
        try:
            channels, height, width = decode(file).shape
        except DataError:
            continue  # counted and named with the others, later
        return channels, height, width
    raise DataError(f"none of the {len(files)} files is an image that can be read; the first is {files[0]}")


def _other_size(file: Path, shape: Iterable[int], expected: Iterable[int]) -> str:
    return (
        f"{file} is {list(shape)} [C, H, W] while the images before are {list(expected)}; "
        "give size= to resize and crop them all"
    )


def _check_header(file: Path, shape: tuple[int, int, int], size: int | None) -> str | None:
    try:
        with Image.open(file) as image:
            # Sides may be swapped by the orientation tag, so only their set is compared.
            if size is None and sorted(image.size) != sorted(shape[1:]):
                raise DataError(_other_size(file, (shape[0], image.height, image.width), shape))
            image.verify()
    except DataError:
        raise
    except Exception as error:  # damaged files make decoders fail in any way
        return f"{file}: {error}"
    return None


def _on_threads(check: Callable[[int], T], count: int) -> list[T]:
    """`check(0), ..., check(count - 1)`; the decoders let go of the interpreter's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(check, range(count)))


def _kept(errors: Sequence[str | None], skip_broken: bool) -> Tensor:
    """Indices of the files without an error; the others are an error together, or a warning."""
    broken = [error for error in errors if error is not None]
    if broken:
        shown = "; ".join(broken[:5]) + ("; ..." if len(broken) > 5 else "")
        message = f"{len(broken)} of {len(errors)} files are no images or damaged: {shown}"
        if not skip_broken or len(broken) == len(errors):
            raise DataError(f"{message}. Remove them, or pass skip_broken=True to leave them out")
        warnings.warn(f"{message}. They are left out", stacklevel=2)
    return torch.tensor([i for i, error in enumerate(errors) if error is None])
