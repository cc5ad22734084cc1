"""Many images of one size, asked for by number: bytes or bits in memory, or an uncompressed file.

Arrays are read block by block, so that neither a compressed file nor a conversion needs twice the memory.
Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaezoo.errors import DataError

R = TypeVar("R", bound="ResidentImages")

Block: TypeAlias = NDArray[np.uint8]
Shape: TypeAlias = tuple[int, ...]

#: Bytes of an array that are read at a time.
BLOCK = 2**24


class Images(ABC):
    """Images by number.

    Attributes:
        shape: (C, H, W).
        device: where `gather` puts them.
        resident: they are in memory, on the device.
        binary: all pixels are 0 or 255.
    """

    shape: tuple[int, int, int]
    device: torch.device
    resident: bool = True
    binary: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def gather(self, numbers: Tensor) -> Tensor:
        """The images of some numbers, long [B]: uint8 [B, C, H, W]."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Images:
        """The same images on another device."""


class ResidentImages(Images):
    """Images in memory, each a row of `values`; subclasses say what is in a row."""

    def __init__(self, values: Tensor, shape: tuple[int, int, int]) -> None:
        self.shape, self.device = shape, values.device
        self._values = values
        self._copies: WeakValueDictionary[torch.device, ResidentImages] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._values)

    def to(self: R, device: torch.device | str) -> R:
        device = torch.empty(0, device=device).device
        if device == self.device:
            return self
        # The splits of a data set travel one by one but share their images: one copy for all of them, which
        # is gone when the last of them is.
        copy = self._copies.get(device)
        if copy is None:
            copy = type(self)(self._values.to(device), self.shape)
            self._copies[device] = copy
        return copy  # type: ignore[return-value]


class ByteImages(ResidentImages):
    """Rows are uint8 [H, W, C], as files have them."""

    def gather(self, numbers: Tensor) -> Tensor:
        return self._values.index_select(0, numbers).permute(0, 3, 1, 2).contiguous()


class BitImages(ResidentImages):
    """Rows are the pixels in reading order, eight a byte, the first in the highest bit (`numpy.packbits`)."""

    binary = True

    def __init__(self, values: Tensor, shape: tuple[int, int, int]) -> None:
        super().__init__(values, shape)
        # A look-up in all 256 bytes takes half the time of shifts.
        byte = torch.arange(256, device=values.device).unsqueeze(1)
        self._pixels_of_byte = ((byte >> torch.arange(7, -1, -1, device=values.device)) & 1).byte() * 255

    def gather(self, numbers: Tensor) -> Tensor:
        bits = self._pixels_of_byte.index_select(0, self._values.index_select(0, numbers).flatten().int())
        return bits.view(len(numbers), -1)[:, : math.prod(self.shape)].unflatten(1, self.shape)


class FileImages(Images):
    """Images in an uncompressed part of a file, read when they are asked for.

    Args:
        path: the file.
        offset: where the first image begins, in bytes.
        size: [N, H, W, C] of uint8.
        device: where `gather` puts them; the file stays where it is.
    """

    resident = False

    def __init__(self, path: Path, offset: int, size: Shape, device: torch.device | str = "cpu") -> None:
        self.shape = (size[3], size[1], size[2])
        self.device = torch.empty(0, device=device).device
        self._path, self._offset, self._size = path, offset, size

    def __len__(self) -> int:
        return self._size[0]

    def gather(self, numbers: Tensor) -> Tensor:
        # Opened anew each time, which costs little: an open file could not be sent to a loader's workers.
        rows = torch.empty(len(numbers), *self._size[1:], dtype=torch.uint8)
        with self._path.open("rb", buffering=0) as file:
            for number, row in zip(numbers.tolist(), rows.numpy()):
                file.seek(self._offset + number * row.nbytes)
                if file.readinto(row) != row.nbytes:
                    raise DataError(f"{self._path} could not be read: it ends before image {number}")
        return rows.to(self.device).permute(0, 3, 1, 2).contiguous()

    def to(self, device: torch.device | str) -> FileImages:
        return FileImages(self._path, self._offset, self._size, device)


@dataclass(frozen=True)
class Source:
    """An array of uint8 as a file holds it.

    Attributes:
        path: the file.
        shape: [N, ...].
        offset: where it begins in the file, in bytes; None if it is compressed.
        blocks: reads it from the beginning to the end, some rows at a time.
    """

    path: Path
    shape: Shape
    offset: int | None
    blocks: Callable[[], Iterator[Block]]

    @property
    def gigabytes(self) -> float:
        """10^9 bytes of the uncompressed array."""
        return math.prod(self.shape) / 1e9


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is a `DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # damaged files make their readers fail in any way
        cause = (str(error).splitlines() or [repr(error)])[0]
        raise DataError(f"{path} could not be read: {cause}") from error


def npy_source(path: Path) -> Source:
    """The array of a .npy file."""

    def blocks() -> Iterator[Block]:
        with reading(path), path.open("rb") as stream:
            yield from _blocks(stream, _npy_shape(stream, path))

    with reading(path), path.open("rb") as stream:
        return Source(path, _npy_shape(stream, path), stream.tell(), blocks)


def npz_source(path: Path, name: str) -> Source:
    """One array of a .npz file; the others are not touched."""

    def blocks() -> Iterator[Block]:
        with reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            yield from _blocks(stream, _npy_shape(stream, path))

    with reading(path), zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise DataError(f"{path} holds no array '{name}'")
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as stream:
            shape, header = _npy_shape(stream, path), stream.tell()
        if member.compress_type != zipfile.ZIP_STORED:
            return Source(path, shape, None, blocks)
        # A member begins with a header of 30 bytes, the last four are the lengths of what follows it.
        with path.open("rb") as file:
            file.seek(member.header_offset + 26)
            start = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        return Source(path, shape, start + header, blocks)


def h5_source(path: Path, name: str) -> Source:
    """One array of an HDF5 file."""
    import h5py

    def blocks() -> Iterator[Block]:
        with reading(path), h5py.File(path, "r") as file:
            array = file[name]
            # Whole chunks at a time, or each would be decompressed many times.
            chunk = array.chunks[0] if array.chunks else 1
            rows = math.ceil(_rows(array.shape) / chunk) * chunk
            for start in range(0, len(array), rows):
                yield array[start : start + rows]

    with reading(path), h5py.File(path, "r") as file:
        if name not in file:
            raise DataError(f"{path} holds no array '{name}'")
        array = file[name]
        if array.dtype != np.uint8:
            raise DataError(f"{path} holds {array.dtype} where bytes (uint8) are expected")
        return Source(path, array.shape, None if array.external else array.id.get_offset(), blocks)


def _npy_shape(stream: IO[bytes], path: Path) -> Shape:
    """Shape of the array of bytes whose header is next; anything else, pickles above all, is refused."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise DataError(f"{path} is of version {version} of the format, which is not for plain arrays")
    with _quiet():
        shape, fortran, dtype = readers[version](stream)
    if dtype not in (np.dtype(np.uint8), np.dtype(np.bool_)) or fortran:
        order = "column by column" if fortran else "row by row"
        raise DataError(f"{path} holds {dtype}, {order}, where bytes (uint8), row by row, are expected")
    return tuple(shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without numpy's warning that a header was written by Python 2, as those of dSprites were."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _rows(shape: Shape) -> int:
    """Rows of a block."""
    return max(1, BLOCK // max(1, math.prod(shape[1:])))


def _blocks(stream: IO[bytes], shape: Shape) -> Iterator[Block]:
    row, rows = math.prod(shape[1:]), _rows(shape)
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)
        content = stream.read(count * row)
        if len(content) < count * row:
            raise EOFError(f"it ends within images {start} to {start + count - 1} of {shape[0]}")
        yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
    if stream.read(1):  # at the end an archive compares its checksum
        raise ValueError("it goes on after the last image")


def load_images(source: Source, *, memory_limit_gb: float, unpack: bool) -> Images:
    """Images [N, H, W, C] of a file, in memory if they fit, else from an uncompressed file.

    Args:
        source: where they are.
        memory_limit_gb: keep them in memory up to this size, 10^9 bytes a GB.
        unpack: if they do not fit and are compressed, write them, once, to an uncompressed file beside it.

    Raises:
        DataError: they do not fit, are compressed, and are not to be written; a damaged file, a full disk.
    """
    if source.gigabytes <= memory_limit_gb:
        images = np.empty(source.shape, np.uint8)
        start = 0
        for block in source.blocks():
            images[start : start + len(block)] = block
            start += len(block)
        height, width, channels = source.shape[1:]
        return ByteImages(torch.from_numpy(images), (channels, height, width))
    if source.offset is None:
        source = _unpacked(source, unpack, memory_limit_gb)
    assert source.offset is not None  # nothing is compressed in a .npy file
    if source.path.stat().st_size < source.offset + math.prod(source.shape):
        raise DataError(f"{source.path} could not be read: it ends before the last image")
    return FileImages(source.path, source.offset, source.shape)


def _unpacked(source: Source, unpack: bool, limit: float) -> Source:
    """The same images in an uncompressed file, which is written if it is not there."""
    path = source.path.with_name(f"{source.path.stem}.unpacked.npy")
    if path.is_file() and path.stat().st_mtime >= source.path.stat().st_mtime:
        there = npy_source(path)
        if there.shape == source.shape:
            return there
    if not unpack:
        raise DataError(
            f"the images of {source.path} take {source.gigabytes:.3g} GB, and memory_limit_gb={limit:g}; "
            f"raise it, or pass unpack=True to write them, once, to {path.name} beside it and read them there"
        )
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": source.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in source.blocks():
                file.write(block.tobytes())
        os.replace(part, path)
    except OSError as error:  # not of reading, which is a DataError
        raise DataError(f"{path} could not be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return npy_source(path)


def pack_bits(source: Source) -> BitImages:
    """Images [N, H, W] of zeros and ones, one bit a pixel.

    Raises:
        DataError: other values, or a damaged file.
    """
    count, height, width = source.shape
    packed = np.empty((count, math.ceil(height * width / 8)), np.uint8)
    start = 0
    for block in source.blocks():
        if block.max() > 1:
            raise DataError(f"{source.path} holds a pixel of {block.max()}, and all should be 0 or 1")
        packed[start : start + len(block)] = np.packbits(block.reshape(len(block), -1), axis=1)
        start += len(block)
    return BitImages(torch.from_numpy(packed), (1, height, width))


def npz_table(path: Path, name: str) -> NDArray[Any]:
    """A small array of numbers of a .npz file."""
    with reading(path), _quiet(), np.load(path, allow_pickle=False) as content:
        if name not in content:
            raise DataError(f"{path} holds no array '{name}'")
        table: NDArray[Any] = content[name]
        return table
