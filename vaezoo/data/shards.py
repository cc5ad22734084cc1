"""Shards: tar files by the convention of WebDataset, indexed once and read at any offset.

So an epoch is a permutation of all images, as of any other data, not a walk through a shuffle buffer. Nothing
is ever unpacked to a file, and no name is ever taken as an address to fetch or a command to run.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag
from torch import Tensor

from vaezoo.data.splits import ImageData, Share, Split, assemble
from vaezoo.data.stored import reading
from vaezoo.data.streaming import file_split, on_threads
from vaezoo.errors import DataError

Shards = Annotated[Path, Field(strict=False)]

#: Where a held-out split comes from. It is told by its type, so that a mistake is said of that one alone.
HeldOut = Annotated[
    Annotated[Share, Tag("share")] | Annotated[Shards, Tag("shards")],
    Discriminator(lambda value: "shards" if isinstance(value, str | Path) else "share"),
]

#: Members that are images, by what follows the first dot of their names.
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff")

#: A member's sample and extension, as WebDataset tells them apart. A name that begins with a dot, or has no
#: dot, belongs to no sample.
MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)

LABEL = re.compile(rb"\s*(\d{1,6})\s*")

#: How compressed files begin.
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}

#: Shards that a process keeps open.
OPEN_SHARDS = 64


def webdataset(
    seed: int = 0,
    *,
    path: Shards,
    size: Annotated[int, Field(ge=1)] | None = None,
    channels: Literal[1, 3] = 3,
    skip_broken: bool = False,
    validation: HeldOut = 0.1,
    test: HeldOut = 0.1,
    memory_limit_gb: Annotated[float, Field(ge=0)] = 4.0,
) -> ImageData:
    """Images in tar files (shards) by the convention of WebDataset.

    Members of a shard whose names are the same up to the first dot are a sample: an image (.jpg, .png, .webp,
    ...) and perhaps its label, an integer (.cls). Other members are passed over.

    Args:
        seed: draws the splits.
        path: a shard; several, as in `train-{000000..000099}.tar`; or a folder of shards, or of subfolders
            `train` and `test` (and perhaps `validation` or `val`), which are taken as the splits.
        size: resize the shorter side to this many pixels and cut out the centred square; None: images are
            taken as they are and must all have the same size.
        channels: 1 (grey) or 3 (RGB).
        skip_broken: leave out images that are damaged, with a warning; else they are an error.
        validation: number of validation images, or their fraction of what the test split leaves; or shards.
        test: number of test images, or their fraction of all; or shards.
        memory_limit_gb: keep the decoded images (10^9 bytes a GB) in memory up to this size, else decode them
            when they are asked for.

    Raises:
        DataError: no shards; one that is compressed, damaged or empty; a sample without an image or with two;
            labels for only a part of the images; broken images, or images of different sizes.
    """
    if (path / "train").is_dir() and (path / "test").is_dir():
        held_out = [path / name for name in ("validation", "val") if (path / name).is_dir()]
        path, validation, test = path / "train", held_out[0] if held_out else validation, path / "test"
    sources = {"train": path, "validation": validation, "test": test}
    shards = {name: find_shards(source) for name, source in sources.items() if isinstance(source, Path)}
    for one, other in combinations(shards, 2):
        common = {path.resolve() for path in shards[one]} & {path.resolve() for path in shards[other]}
        if common:
            raise DataError(f"the shard {min(common)} is in {one} and in {other}; splits must be disjoint")
    indexed = {name: index_shards(paths) for name, paths in shards.items()}
    highest = [int(labels.max()) for _, labels in indexed.values() if labels is not None]
    if len(highest) not in (0, len(indexed)):
        without = next(name for name, (_, labels) in indexed.items() if labels is None)
        raise DataError(
            f"the shards {sources[without]} have no labels (.cls), but those of other splits have"
        )

    def split(name: str) -> Split:
        members, labels = indexed[name]
        return file_split(
            members,
            size=size,
            channels=channels,
            labels=labels,
            skip_broken=skip_broken,
            memory_limit_gb=memory_limit_gb,
        )

    return assemble(
        seed,
        split("train"),
        validation=split("validation") if isinstance(validation, Path) else validation,
        test=split("test") if isinstance(test, Path) else test,
        classes=tuple(map(str, range(max(highest) + 1))) if highest else (),
    )


def find_shards(source: Path) -> list[Path]:
    """The shards of a folder or a pattern, in the order of their names.

    Raises:
        DataError: there are none, one is missing, or they are not files.
    """
    if re.match(r"\w{2,}:", str(source)):
        raise DataError(f"shards must be files that can be read at any offset, which {source} is not")
    source = source.expanduser()
    if source.is_dir():
        # Compressed ones are not passed over: they are refused where they are read, with the reason.
        paths = sorted(file for file in source.iterdir() if re.search(r"\.(tar(\.\w+)?|tgz)$", file.name))
        if not paths:
            raise DataError(f"there are no shards (.tar) in {source}")
        return paths
    paths = []
    for path in map(Path, _expand(str(source))):  # stops at the first that is missing, however long the range
        if not path.is_file():
            raise DataError(f"there is no shard {path}")
        paths.append(path)
    return paths


def _expand(pattern: str) -> Iterator[str]:
    """The names that a pattern stands for: those of `{08..10}` are 08, 09 and 10."""
    found = re.search(r"\{(\d{1,18})\.\.(\d{1,18})\}", pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    if int(first) > int(last):
        raise DataError(f"the range {found.group()} of {pattern} is empty")
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{pattern[: found.start()]}{number:0{len(first)}}{pattern[found.end() :]}")


class Members:
    """The images of shards: `Files` of which all that is kept is where they are, 24 bytes for each.

    Args:
        shards: the tar files.
        places: int64 [N, 3]: number of the shard, first byte of the image in it, and number of bytes.
    """

    def __init__(self, shards: OpenFiles, places: NDArray[np.int64]) -> None:
        self._shards, self._places = shards, places

    def __len__(self) -> int:
        return len(self._places)

    def open(self, index: int) -> IO[bytes]:
        shard, start, length = self._places[index].tolist()
        return io.BufferedReader(Part(self._shards.get(shard), start, length))

    def name(self, index: int) -> str:
        shard, start, _ = self._places[index].tolist()
        path = self._shards.paths[shard]
        try:  # names are not kept: the header, which has it, lies right before the image
            header = Part(self._shards.get(shard), start - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE).readall()
            name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except Exception:  # the shard is gone, or another one by now
            return f"the image at byte {start} of {path}"
        return f"{name!r} of {path}"

    def view(self, indices: Tensor) -> Members:
        return Members(self._shards, self._places[indices.numpy()])


class OpenFiles:
    """Files that stay open. A process that is forked shares them safely, since nobody moves their positions;
    one that gets a pickle opens them anew."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.get = lru_cache(OPEN_SHARDS)(lambda number: OpenFile(paths[number]))

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self.paths,)


class OpenFile:
    """A file that is closed when nobody reads it any longer, rather than when it falls out of a cache."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Part(io.RawIOBase):
    """A part of an open file, as a file."""

    def __init__(self, file: OpenFile, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._length - self._position))
        content = os.pread(self._file.descriptor, wanted, self._start + self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def index_shards(paths: Sequence[Path]) -> tuple[Members, Tensor | None]:
    """The images of shards, in their order, and their labels if they have any.

    Raises:
        DataError: a shard that is compressed, damaged or empty; a sample without an image or with two; labels
            for only a part of the images.
    """
    tables = on_threads(lambda number: _index(paths[number]), len(paths))
    number = np.repeat(np.arange(len(paths)), [len(table) for table in tables])
    start, length, label = np.concatenate(tables).T
    members = Members(OpenFiles(paths), np.stack([number, start, length], 1))
    if (label < 0).all():
        return members, None
    if (label < 0).any():
        without = members.name(int((label < 0).argmax()))
        raise DataError(f"{without} has no label (.cls), but other images have one")
    return members, torch.from_numpy(label.copy())


def _index(path: Path) -> NDArray[np.int64]:
    """Where the images of a shard begin, how long they are, and their labels, -1 for none: [n, 3]."""
    samples: dict[str, list[int]] = {}
    with reading(path), path.open("rb") as file:
        for member in _members(path, file):
            match = MEMBER.fullmatch(member.name)
            if match is None:
                continue
            key, extension = match.group(1), match.group(2).lower()
            sample = samples.setdefault(key, [-1, 0, -1])
            if extension in IMAGES:
                if sample[0] >= 0:
                    raise DataError(
                        f"{path}: the sample {key!r} has two images, the second is {member.name!r}"
                    )
                sample[:2] = member.offset_data, member.size
            elif extension == "cls":
                if sample[2] >= 0:
                    raise DataError(f"{path}: the sample {key!r} has two labels")
                file.seek(member.offset_data)
                label = LABEL.fullmatch(file.read(min(member.size, 99)))
                if label is None:
                    raise DataError(
                        f"{path}: {member.name!r} holds no label, which is a number from 0 to 999999"
                    )
                sample[2] = int(label.group(1))
    if not samples:
        raise DataError(f"{path} holds no images ({', '.join(IMAGES)})")
    for key, (start, *_) in samples.items():
        if start < 0:
            raise DataError(f"{path}: the sample {key!r} has no image ({', '.join(IMAGES)})")
    return np.array(list(samples.values()), dtype=np.int64)


def _members(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar file. What is odd is refused, so that no image is silently lost."""
    beginning, end = file.read(8), file.seek(0, os.SEEK_END)
    file.seek(0)
    for magic, kind in COMPRESSED.items():
        if beginning.startswith(magic):
            raise DataError(
                f"{path} is compressed ({kind}), so single images cannot be read from it; decompress it, "
                "which costs little, since images are compressed themselves"
            )
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if member.size < 0 or member.offset_data + member.size > end:
                raise DataError(
                    f"{path}: {member.name!r} has {member.size} bytes from byte {member.offset_data} on, but "
                    f"the file has {end}; it is cut off or damaged"
                )
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise DataError(f"{path}: {member.name!r} is a link, a device or sparse, not a plain file")
            yield member
        # tarfile takes any header that it cannot read for the end.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(
                f"{path} is cut off or damaged at byte {tar.offset}, where a member or the end should be"
            )
