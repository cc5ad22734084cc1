"""Image files, wherever they lie: decoded once into memory if they fit, else when a batch asks for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vaezoo.data.splits import ResidentSplit, Split
from vaezoo.errors import DataError
from vaezoo.random import generator

T = TypeVar("T")

#: Formats that are decoded. Not all that Pillow knows: for EPS it would start a program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


class Files(Protocol):
    """Image files by number. Workers of a `Loader` get a copy, perhaps as a pickle."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Path | IO[bytes]:
        """What Pillow reads the image from."""

    def name(self, index: int) -> str:
        """Where the image is, for messages."""

    def view(self, indices: Tensor) -> Files:
        """The files at `indices` (long [n]), in that order."""


class Paths:
    """Files of their own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def open(self, index: int) -> Path:
        return self._paths[index]

    def name(self, index: int) -> str:
        return str(self._paths[index])

    def view(self, indices: Tensor) -> Paths:
        return Paths([self._paths[i] for i in indices.tolist()])


class Decoder:
    """Reads one of some image files into uint8 [C, H, W].

    Args:
        channels: 1 (grey) or 3 (RGB).
        size: resize the shorter side to this many pixels and cut out the centred square; None: as it is.
        crop: side of a centred square to cut out before that.
    """

    def __init__(self, channels: int, size: int | None = None, crop: int | None = None) -> None:
        self.channels, self.size, self.crop = channels, size, crop

    def __call__(self, files: Files, index: int) -> np.ndarray:
        """Raises DataError, which names the file and what is wrong with it."""
        try:
            with Image.open(files.open(index), formats=FORMATS) as opened:
                if opened.mode.startswith("I") or opened.mode == "F":
                    raise ValueError(
                        f"more than 8 bits per channel (mode {opened.mode}), which would be cut off"
                    )
                # Photographs may be stored on their side, with a tag that says so.
                image: Image.Image = ImageOps.exif_transpose(opened).convert(
                    "L" if self.channels == 1 else "RGB"
                )
        except Exception as error:  # damaged files make decoders fail in any way
            raise DataError(_broken(files.name(index), error)) from error
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
        files: Files,
        decode: Decoder,
        image_shape: tuple[int, int, int],
        labels: Tensor | None = None,
        factors: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.empty(0, device=device).device
        self.image_shape = image_shape
        self._files, self._decode = files, decode
        self._noise: Tensor | None = None  # long [N], the seeds of binary pixels that are drawn once
        self._labels, self._factors = (
            values if values is None else values.to(self.device) for values in (labels, factors)
        )

    def __len__(self) -> int:
        return len(self._files)

    def load(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W], on the CPU; runs in the workers of a `Loader`."""
        pixels = self._decode(self._files, index)
        if pixels.shape != self.image_shape:
            raise DataError(_other_size(self._files.name(index), pixels.shape, self.image_shape))
        image = torch.from_numpy(pixels)
        if self._noise is None:
            return image
        # As in a resident split: u is uniform on {0, ..., 254}, so P(u < grey) = grey / 255 exactly.
        u = torch.empty_like(image).random_(0, 255, generator=generator(int(self._noise[index]), "cpu"))
        return (u < image).byte() * 255

    def batch(self, indices: Tensor) -> Tensor:
        return self.floats(torch.stack([self.load(i) for i in indices.tolist()]).to(self.device))

    def view(self, indices: Tensor) -> StreamingSplit:
        split = copy(self)
        split._files = self._files.view(indices)
        split._labels, split._factors, split._noise = (
            values if values is None else values[indices.to(values.device)]
            for values in (self._labels, self._factors, self._noise)
        )
        return split

    def to(self, device: torch.device | str) -> StreamingSplit:
        split = copy(self)
        split.device = torch.empty(0, device=device).device
        split._labels, split._factors = (
            values if values is None else values.to(device) for values in (self._labels, self._factors)
        )
        return split

    def binarized(self, noise: torch.Generator | None) -> StreamingSplit:
        split = copy(self)
        split._dynamic = noise is None
        if noise is not None:
            # To draw the pixels here would be to decode all images. With a seed of its own an image is the
            # same in whatever order, and by whichever process, it is decoded.
            split._noise = torch.randint(2**63 - 1, (len(self),), generator=noise)
        return split

    def content(self, indices: Tensor) -> bytes:
        return b"".join(self.load(i).numpy().tobytes() for i in indices.tolist())


def file_split(
    files: Files,
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
        errors = on_threads(lambda i: _check_header(files, i, shape, size), len(files))
        kept = _kept(errors, skip_broken)
        split = StreamingSplit(files, decode, shape, labels, factors)
        return split if len(kept) == len(files) else split.view(kept)

    images = np.empty((len(files), *shape), dtype=np.uint8)

    def fill(i: int) -> str | None:
        try:
            pixels = decode(files, i)
        except DataError as error:
            return str(error)
        if pixels.shape != shape:
            raise DataError(_other_size(files.name(i), pixels.shape, shape))
        images[i] = pixels
        return None

    kept = _kept(on_threads(fill, len(files)), skip_broken)
    return ResidentSplit(torch.from_numpy(images), labels, factors, None if len(kept) == len(files) else kept)


def _shape(files: Files, decode: Decoder, size: int | None) -> tuple[int, int, int]:
    """Shape of all images: stated by `size`, else that of the first one that can be decoded."""
    if size is not None:
        return decode.channels, size, size
    for index in range(len(files)):
        try:
            channels, height, width = decode(files, index).shape
        except DataError:
            continue  # counted and named with the others, later
        return channels, height, width
    raise DataError(
        f"none of the {len(files)} files is an image that can be read; the first is {files.name(0)}"
    )


def _broken(name: str, error: Exception) -> str:
    # Pillow's own sentence names what it was given, which may be no name.
    return f"{name}: {'no image' if isinstance(error, UnidentifiedImageError) else error}"


def _other_size(name: str, shape: Iterable[int], expected: Iterable[int]) -> str:
    return (
        f"{name} is {list(shape)} [C, H, W] while the images before are {list(expected)}; "
        "give size= to resize and crop them all"
    )


def _check_header(files: Files, index: int, shape: tuple[int, int, int], size: int | None) -> str | None:
    try:
        with Image.open(files.open(index), formats=FORMATS) as image:
            # Sides may be swapped by the orientation tag, so only their set is compared.
            if size is None and sorted(image.size) != sorted(shape[1:]):
                raise DataError(_other_size(files.name(index), (shape[0], image.height, image.width), shape))
            image.verify()
    except DataError:
        raise
    except Exception as error:  # damaged files make decoders fail in any way
        return _broken(files.name(index), error)
    return None


def on_threads(check: Callable[[int], T], count: int) -> list[T]:
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
