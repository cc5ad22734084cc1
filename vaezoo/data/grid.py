"""Data with an image for every combination of its factors, so that images of chosen factors can be had."""

from __future__ import annotations

from functools import cached_property, partial

import torch
from torch import Tensor

from vaezoo.data.splits import Factor, Split
from vaezoo.data.stored import Images
from vaezoo.distributed import per_image
from vaezoo.errors import DataError


class GridSplit(Split):
    """Some images of a full grid of factors; `render` gives those of any combination, in the split or not.

    An image's number is that of its combination: the last factor varies fastest, and among images that have
    all factors in common, the instance.

    Args:
        images: all of the grid, shared between its splits.
        axes: the factors, one axis of the grid each.
        instances: how many images there are of each combination.
        label: which factor is the class, if one is.
        index: long [N], the images of this split; None: all.

    Raises:
        DataError: not one image for each combination and instance.
    """

    def __init__(
        self,
        images: Images,
        axes: tuple[Factor, ...],
        *,
        instances: int = 1,
        label: int | None = None,
        index: Tensor | None = None,
    ) -> None:
        self._images, self._axes, self._instances, self._label = images, axes, instances, label
        self._index = torch.arange(len(images), device=images.device) if index is None else index
        self.image_shape, self.device, self.resident = images.shape, images.device, images.resident
        total = instances
        for axis in axes:
            total *= axis.size
        if total != len(images):
            raise DataError(f"a grid of {total} images cannot be made of {len(images)}")

    @cached_property
    def factors(self) -> Tensor:
        sizes = tuple(axis.size for axis in self._axes)
        return torch.stack(torch.unravel_index(self._index // self._instances, sizes), 1)

    @property
    def labels(self) -> Tensor | None:
        return None if self._label is None else self.factors[:, self._label]

    def __len__(self) -> int:
        return len(self._index)

    def batch(self, indices: Tensor) -> Tensor:
        return self._gather(indices).float().div_(255)

    def load(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W]; runs in the workers of a `Loader` if the images are in a file."""
        return self._gather(torch.tensor([index]))[0]

    def render(self, factors: Tensor) -> Tensor:
        """Images of any factors, integer [B, F], in this split or not: float32 [B, C, H, W].

        Where there are several instances, one is drawn uniformly for each image, from torch's default
        generator of the CPU, so that the draw is the same on every device.

        Raises:
            DataError: not F columns, or values out of range. (Those are looked for only on the CPU: elsewhere
                the device would have to be waited for.)
        """
        if factors.ndim != 2 or factors.shape[1] != len(self._axes):
            names = ", ".join(axis.name for axis in self._axes)
            raise DataError(f"factors must be [B, {len(self._axes)}] ({names}), not {list(factors.shape)}")
        numbers = torch.zeros(len(factors), dtype=torch.long, device=factors.device)
        for axis, values in zip(self._axes, factors.unbind(1)):
            if factors.device.type == "cpu" and bool(((values < 0) | (values >= axis.size)).any()):
                raise DataError(
                    f"factor {axis.name} has the values 0 to {axis.size - 1}, "
                    f"not {int(values.min())} to {int(values.max())}"
                )
            numbers = numbers * axis.size + values
        numbers = numbers.to(self.device)
        if self._instances > 1:
            drawn = per_image(partial(torch.randint, self._instances), (len(factors),), "cpu").to(self.device)
            numbers = numbers * self._instances + drawn
        return self._images.gather(numbers).float().div_(255)

    def view(self, indices: Tensor) -> GridSplit:
        return self._like(self._images, self._index[indices.to(self.device)])

    def to(self, device: torch.device | str) -> GridSplit:
        images = self._images.to(device)
        return self._like(images, self._index.to(images.device))

    def binarized(self, noise: torch.Generator | None) -> GridSplit:
        if not self._images.binary:
            raise DataError(
                "images with grey levels or colours that are rendered from their factors cannot be binarised"
            )
        return self  # Bernoulli(0) and Bernoulli(1) draw what is there

    def content(self, indices: Tensor) -> bytes:
        return self._gather(indices).cpu().numpy().tobytes()

    def _gather(self, indices: Tensor) -> Tensor:
        return self._images.gather(self._index.index_select(0, indices.to(self.device)))

    def _like(self, images: Images, index: Tensor) -> GridSplit:
        return GridSplit(images, self._axes, instances=self._instances, label=self._label, index=index)
