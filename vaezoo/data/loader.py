"""Batches in an order that depends on the seed and the epoch alone, so that a run resumes exactly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vaezoo.data.splits import Split
from vaezoo.errors import DataError
from vaezoo.random import derive, generator

#: How long a worker outlives SIGTERM: the time that the trainer has to finish a step and write its state.
WORKER_SECONDS = 10


class Batched(Protocol):
    """What a `Loader` needs: a `Split`, or anything that gives batches by index, such as codes.

    If `resident` is False it also has `load(index: int) -> uint8 tensor`, which runs in the workers, and
    `floats`, which makes a batch of those (see `Split.floats`).
    """

    @property
    def resident(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def batch(self, indices: Tensor, /) -> Tensor: ...


class Loader:
    """Batches of a split, epoch by epoch.

    Args:
        split: where the batches come from.
        batch_size: images per batch.
        seed: with the number of the epoch it determines the order.
        shuffle: draw a new permutation for every epoch; False: in order.
        drop_last: leave out the last batch if it is smaller than the others.
        workers: processes that read and decode, for a split that is not resident.
        share: (i, n, parts): give the i-th of n equal shares of each batch, its rows in order, in `parts`
            equal parts one after the other. n * parts divides the batch size.

    Raises:
        DataError: no full batch in the split, or a batch size below 1.
    """

    def __init__(
        self,
        split: Batched,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        workers: int = 0,
        share: tuple[int, int, int] = (0, 1, 1),
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}, but a batch needs at least 1 image")
        if len(split) == 0 or (drop_last and batch_size > len(split)):
            raise DataError(f"batch_size={batch_size} is more than the {len(split)} images of the split")
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.shuffle, self.workers, self.share = shuffle, workers, share
        full, rest = divmod(len(split), batch_size)
        self.steps_per_epoch = full + (rest > 0 and not drop_last)

    def epoch(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Tensor]:
        """Batches `start`, `start + every`, ... of an epoch; the others are neither read nor rendered."""
        if self.shuffle:
            order = torch.randperm(
                len(self.split), generator=generator(derive(self.seed, "epoch", epoch), "cpu")
            )
        else:
            order = torch.arange(len(self.split))
        order = order[start * self.batch_size : self.steps_per_epoch * self.batch_size]
        order = order.to(self.split.device) if self.split.resident else order
        index, shares, parts = self.share
        batches = [
            rows
            for batch in (order.split(self.batch_size)[::every] if len(order) else ())
            for rows in batch.split(self.batch_size // (shares * parts))[index * parts : (index + 1) * parts]
        ]
        if not self.split.resident:
            yield from self._stream(batches, epoch)
            return
        for indices in batches:
            yield self.split.batch(indices)

    def _stream(self, batches: list[Tensor], epoch: int) -> Iterator[Tensor]:
        device = self.split.device
        on_cuda = device.type == "cuda"
        images: DataLoader[Tensor] = DataLoader(
            _Images(self.split),
            batch_sampler=[indices.tolist() for indices in batches],
            num_workers=self.workers,
            pin_memory=on_cuda,
            worker_init_fn=_leave_signals_to_the_trainer,
            # DataLoader draws a seed for its workers: from here, so that training's own draws stay the same.
            generator=generator(derive(self.seed, "workers", epoch), "cpu"),
        )
        try:
            for batch in images:
                yield self.split.floats(batch.to(device, non_blocking=on_cuda))  # type: ignore[attr-defined]
            return
        except DataError as error:
            # From a worker it comes with the worker's traceback before what it says.
            sentence = str(error).strip().splitlines()[-1]
        # Out here, where no traceback keeps the workers alive.
        raise DataError(sentence.removeprefix(f"{DataError.__module__}.{DataError.__name__}: "))


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and schedulers reach all processes of a run, but one decides when it ends: after a step. A
    worker that is told to end does so some seconds later."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_SECONDS))


class _Images(Dataset[Tensor]):
    """Single images of a split that is not resident, as `DataLoader` wants them."""

    def __init__(self, split: Batched) -> None:
        # Workers may get this object as a pickle, where tensors on a device have no place.
        self.split = split.to("cpu") if isinstance(split, Split) else split

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.split.load(index)  # type: ignore[attr-defined]
        return image
