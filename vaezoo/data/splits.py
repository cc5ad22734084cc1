"""What a data set is: three splits of images, their labels and factors, and a header that identifies them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from vaezoo.distributed import per_image
from vaezoo.errors import DataError
from vaezoo.random import derive, generator

S = TypeVar("S", bound="Split")

Binarize = Literal["none", "static", "dynamic"]

#: Size of a held-out split: a fraction of the images it is carved from, or their number.
Share = Annotated[int | float, Field(gt=0)]

#: Images per split that enter the fingerprint, evenly spaced.
FINGERPRINT_IMAGES = 64


@dataclass(frozen=True)
class Factor:
    """A ground-truth factor of variation: one column of `Split.factors`.

    Attributes:
        name: what varies ("shape", "orientation", ...).
        size: number of values; 0 for a continuous factor.
        kind: how the values relate, which metrics must know and cannot guess from the numbers.
    """

    name: str
    size: int
    kind: Literal["categorical", "ordinal", "continuous", "circular"]


class Split(ABC):
    """Images that are asked for by index. Subclasses say where the images come from.

    Attributes:
        image_shape: (C, H, W).
        device: where batches, labels and factors are.
        resident: True if `batch` is cheap (no reading, no decoding), so that no workers are needed.
    """

    image_shape: tuple[int, int, int]
    device: torch.device
    resident: bool = True

    _labels: Tensor | None = None
    _factors: Tensor | None = None
    _dynamic: bool = False  # binarise anew in every batch

    @property
    def labels(self) -> Tensor | None:
        """Class of every image, long [N], or None."""
        return self._labels

    @property
    def factors(self) -> Tensor | None:
        """Index of every factor's value, long [N, F], float if a factor is continuous; or None."""
        return self._factors

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor) -> Tensor:
        """Images at `indices` (long [B]) as float32 [B, C, H, W] in [0, 1], on the split's device."""

    def floats(self, images: Tensor) -> Tensor:
        """What `batch` makes of uint8 images [B, C, H, W] that are on the device."""
        values = images.float().div_(255)
        # A comparison is three times as fast as torch.bernoulli.
        if self._dynamic:
            values = (per_image(torch.rand, values.shape, values.device) < values).float()
        return values

    @abstractmethod
    def view(self: S, indices: Tensor) -> S:
        """The split of the images at `indices` (long [n]), in that order."""

    @abstractmethod
    def to(self: S, device: torch.device | str) -> S:
        """The same split on another device."""

    @abstractmethod
    def binarized(self: S, noise: torch.Generator | None) -> S:
        """The same split with pixels drawn from Bernoulli(grey level).

        Args:
            noise: draws once and for all; None: draw anew in every `batch`, from torch's default generator.

        Raises:
            DataError: the images of this split cannot be binarised.
        """

    @abstractmethod
    def content(self, indices: Tensor) -> bytes:
        """Bytes that determine the images at `indices`, the same on every device and at every call."""

    def subset(self: S, n: int, seed: int) -> S:
        """`min(n, len(self))` images drawn without replacement; the same ones for the same seed."""
        return self.view(self.draw(n, seed))

    def draw(self, n: int, seed: int) -> Tensor:
        """Indices of the images that `subset` of the same arguments holds."""
        if n < 1:
            raise DataError(f"a subset needs at least 1 image, not {n}")
        return torch.randperm(len(self), generator=generator(derive(seed, "subset"), "cpu"))[:n]

    def first(self: S, n: int) -> S:
        """The first `min(n, len(self))` images."""
        if n < 1:
            raise DataError(f"a subset needs at least 1 image, not {n}")
        return self.view(torch.arange(min(n, len(self))))


class ResidentSplit(Split):
    """Images as one uint8 tensor on the device, gathered by index and turned into floats within the batch.

    Args:
        images: uint8 [M, C, H, W], shared between the views of it.
        labels: long [M] or None.
        factors: long or float [M, F] or None.
        index: long [N], the images that belong to this split; None: all.
        dynamic: binarise anew in every batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        factors: Tensor | None = None,
        index: Tensor | None = None,
        dynamic: bool = False,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(f"images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}")
        for name, values in (("labels", labels), ("factors", factors)):
            if values is not None and len(values) != len(images):
                raise DataError(f"{len(images)} images but {len(values)} {name}")
        self._images, self._index, self._dynamic = images, index, dynamic
        # Labels and factors are small: they follow the index at once, the images only within a batch.
        self._labels = labels if labels is None or index is None else labels[index]
        self._factors = factors if factors is None or index is None else factors[index]
        channels, height, width = images.shape[1:]
        self.image_shape = (channels, height, width)
        self.device = images.device

    def __len__(self) -> int:
        return len(self._images) if self._index is None else len(self._index)

    def batch(self, indices: Tensor) -> Tensor:
        return self.floats(self._gather(indices))

    def view(self, indices: Tensor) -> ResidentSplit:
        indices = indices.to(self.device)
        return self._like(self._images, indices if self._index is None else self._index[indices], indices)

    def to(self, device: torch.device | str) -> ResidentSplit:
        if torch.empty(0, device=device).device == self.device:
            return self
        # Only the images of this split travel, so that the views of one tensor do not each send all of it.
        images = self._images if self._index is None else self._images[self._index]
        return self._like(images.to(device), None)

    def binarized(self, noise: torch.Generator | None) -> ResidentSplit:
        if noise is None:
            split = self._like(self._images, self._index)
            split._dynamic = True
            return split
        images = torch.empty(len(self), *self.image_shape, dtype=torch.uint8, device=self.device)
        for rows in torch.arange(len(self)).split(4096):
            # u is uniform on {0, ..., 254}, so P(u < grey) = grey / 255 exactly.
            u = torch.empty(len(rows), *self.image_shape, dtype=torch.uint8).random_(0, 255, generator=noise)
            images[rows[0] : rows[-1] + 1] = (u.to(self.device) < self._gather(rows)).byte() * 255
        return self._like(images, None)

    def content(self, indices: Tensor) -> bytes:
        return self._gather(indices).cpu().numpy().tobytes()

    def _gather(self, indices: Tensor) -> Tensor:
        indices = indices.to(self.device)
        return self._images.index_select(
            0, indices if self._index is None else self._index.index_select(0, indices)
        )

    def _like(self, images: Tensor, index: Tensor | None, rows: Tensor | None = None) -> ResidentSplit:
        """The same kind of split over `images[index]`, with the labels and factors of `rows` (None: all)."""
        split = ResidentSplit(images, index=index, dynamic=self._dynamic)
        for name in ("_labels", "_factors"):
            values: Tensor | None = getattr(self, name)
            if values is not None:
                setattr(split, name, (values if rows is None else values[rows]).to(images.device))
        return split


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set, ready for the trainer and the evaluation.

    Attributes:
        name: what `load_data` was asked for; with `options`, `binarize` and `seed` it loads the same again.
        train, validation, test: disjoint splits. Model selection looks at validation, never at test.
        image_shape: (C, H, W).
        factors: ground-truth factors, one per column of `Split.factors`; empty if there are none.
        classes: names of the labels; empty if there are none.
        binarize: "none", "static" (every split drawn once) or "dynamic" (train drawn anew in every batch).
        seed: draws the splits and the static binarisation.
        options: options of the data set, defaults included, JSON-able.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    image_shape: tuple[int, int, int]
    factors: tuple[Factor, ...] = ()
    classes: tuple[str, ...] = ()
    binarize: Binarize = "none"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def header(self) -> dict[str, Any]:
        """What identifies the data in a report or a checkpoint, JSON-able."""
        return {
            "name": self.name,
            "options": self.options,
            "binarize": self.binarize,
            "seed": self.seed,
            "sizes": {name: len(split) for name, split in self.splits.items()},
            "image_shape": list(self.image_shape),
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over a fixed sample of every split: the same on every device."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            digest.update(f"{name} {len(split)} {self.image_shape}".encode())
            count = min(len(split), FINGERPRINT_IMAGES)
            sample = split.view(torch.arange(count) * len(split) // count)
            digest.update(sample.content(torch.arange(count)))
            for values in (sample.labels, sample.factors):
                if values is not None:
                    digest.update(values.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> ImageData:
        """The same data on another device."""
        return self._map(lambda name, split: split.to(device))

    def binarized(self, mode: Binarize) -> ImageData:
        """The same data with Bernoulli pixels (see `binarize`), drawn from the data's seed."""
        if mode == "none":
            return self

        def draw(name: str, split: Split) -> Split:
            anew = mode == "dynamic" and name == "train"
            return split.binarized(None if anew else generator(derive(self.seed, "binarize", name), "cpu"))

        return replace(self._map(draw), binarize=mode)

    def _map(self, change: Any) -> ImageData:
        changed = {name: change(name, split) for name, split in self.splits.items()}
        return replace(self, image_shape=changed["train"].image_shape, **changed)


def carve(pool: S, share: Share, seed: int, purpose: str) -> tuple[S, S]:
    """Split `pool` into (the rest, `share` of it) by a permutation drawn from the seed.

    Raises:
        DataError: no images are left for the rest.
    """
    count = share_of(len(pool), share)
    if count >= len(pool):
        raise DataError(f"{purpose}={share} of {len(pool)} images leaves none for train")
    order = torch.randperm(len(pool), generator=generator(derive(seed, purpose), "cpu"))
    return pool.view(order[count:]), pool.view(order[:count])


def share_of(total: int, share: Share) -> int:
    """Number of images that `share` of `total` means, at least one."""
    return max(1, round(total * share)) if isinstance(share, float) else share


def assemble(
    seed: int,
    pool: Split,
    *,
    validation: Share | Split,
    test: Share | Split,
    factors: tuple[Factor, ...] = (),
    classes: tuple[str, ...] = (),
) -> ImageData:
    """Data from a pool of training images; `validation` and `test` are splits, or the share to carve out."""
    if not isinstance(test, Split):
        pool, test = carve(pool, test, seed, "test")
    if not isinstance(validation, Split):
        pool, validation = carve(pool, validation, seed, "validation")
    for name, split in (("validation", validation), ("test", test)):
        if split.image_shape != pool.image_shape:
            raise DataError(
                f"images of train are {pool.image_shape} but those of {name} are {split.image_shape}"
            )
    return ImageData("", pool, validation, test, pool.image_shape, factors, classes, seed=seed)
