"""Folders of images, whose subfolders are classes or splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from vaezoo.data.splits import ImageData, Share, Split, assemble
from vaezoo.data.streaming import Paths, file_split
from vaezoo.errors import DataError


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
            Paths(files[part]),
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
