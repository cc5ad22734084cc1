"""Several processes that train one model: who they are, and what each of them has of a batch.

`torchrun` starts the processes, and torch's `DistributedDataParallel` averages their gradients. A step is the
same whatever their number: noise that belongs to images is drawn for the whole batch from generators that all
processes share, and each takes the rows of its images (`per_image`); what a model computes over the batch, it
computes over the whole one (`gather`, `total`). With one process and without `accumulate` these functions
return what they are given, or draw from torch's default generator.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vaezoo.errors import VaezooError
from vaezoo.random import generator as make_generator

#: A process that hangs ends the run after this time: longer than it takes to read data or to write a state.
TIMEOUT = timedelta(minutes=30)


def rank() -> int:
    """This process's number, from 0; process 0 alone writes files, prints and calls callbacks."""
    return dist.get_rank() if _started() else 0


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _started() else 1


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def join_group() -> None:
    """Let the processes that `torchrun` started know each other, each with a GPU of its own if there are any,
    until they end. Does nothing in other processes, or where somebody has started a group already.

    Raises:
        VaezooError: more processes on this machine than it has GPUs.
    """
    if _started() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return
    backend = "gloo"
    if torch.cuda.is_available():
        own, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= gpus:
            raise VaezooError(
                f"process {own} of this machine has no GPU, there are only {gpus}: start fewer with "
                '--nproc-per-node, or hide the GPUs with CUDA_VISIBLE_DEVICES=""'
            )
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    atexit.register(_leave_group)  # and not earlier: a second group would wait for the first for ever


def _leave_group() -> None:
    if _started():
        dist.destroy_process_group()


# --- For the trainer --------------------------------------------------------------------------------------


class _Forward(nn.Module):
    """A function of parameters in the form that `DistributedDataParallel` takes: as a `forward`.

    It does not see the module's buffers, which it would send anew in every step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], function: Callable[..., Any]) -> None:
        super().__init__()
        self.of_function, self.function = nn.ParameterList(parameters), function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def replicate(module: nn.Module, function: Callable[..., Any], some_unused: bool) -> DistributedDataParallel:
    """The function, with gradients averaged over the processes as they are computed.

    Parameters and buffers become those of process 0 here, and stay equal since all updates are.

    Args:
        module: whose parameters they are.
        function: what is differentiated.
        some_unused: parameters may be without gradient in some steps; takes longer.
    """
    with torch.no_grad():
        for buffer in module.buffers():  # parameters are sent by DistributedDataParallel
            dist.broadcast(buffer, 0)
    forward = _Forward(module.parameters(), function)
    return DistributedDataParallel(forward, find_unused_parameters=some_unused)


def mean_of_processes(values: Tensor) -> Tensor:
    """The mean of the processes' tensors of the same shape."""
    if processes() == 1:
        return values
    dist.all_reduce(values)
    return values / processes()


def largest(values: Sequence[int], device: torch.device) -> list[int]:
    """Of each number the largest that any process has."""
    if processes() == 1:
        return list(values)
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def collect(value: Any) -> list[Any]:
    """The values of all processes, by rank; anything that pickles."""
    if processes() == 1:
        return [value]
    values = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all processes have come here, so that what process 0 has written is there for all of them."""
    collect(None)


# --- Which images of a batch are at hand ------------------------------------------------------------------


@dataclass
class _Part:
    """Rows `start` to `start + count` of a batch of `size` images, whose noise comes from `seed`."""

    start: int
    count: int
    size: int
    seed: int
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)

    def generator(self, device: torch.device) -> torch.Generator:
        """Stands at the same place on all processes, and where the default one stands in a single process."""
        if device not in self.generators:
            self.generators[device] = make_generator(self.seed, device)
        return self.generators[device]


#: What is at hand of the batch of this step; None: all of it.
_part: _Part | None = None


@contextmanager
def part_of_batch(seed: int, size: int, part: int = 0, parts: int = 1) -> Iterator[None]:
    """Inside, the images at hand are a part of a batch of `size`: of this process's rows, part `part` of
    `parts`. Its noise is that of the whole batch, drawn from `seed`."""
    global _part
    count = size // (processes() * parts)
    if count < size:
        _part = _Part((rank() * parts + part) * count, count, size, seed)
    try:
        yield
    finally:
        _part = None


# --- For models and data ----------------------------------------------------------------------------------


def per_image(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    device: torch.device | str,
    axis: int = 0,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """`draw(shape)` for noise that belongs to images: the rows of the images at hand.

    Args:
        draw: such as `torch.randn`.
        shape: of the result.
        device: of the result.
        axis: the axis of `shape` that runs over images. If it is not as long as the images at hand are many,
            it runs over something else, and the draw is the same on all processes.
        generator: to draw from, all of it, as `sample` does; None: the step's own.
        **options: for `draw`, such as `dtype`.
    """
    if generator is not None:
        return draw(shape, device=device, generator=generator, **options)
    if _part is None or shape[axis] != _part.count:
        return alike(draw, shape, device, **options)
    whole = [*shape]
    whole[axis] = _part.size
    return alike(draw, whole, device, **options).narrow(axis, _part.start, _part.count)


def alike(
    draw: Callable[..., Tensor], shape: Sequence[int], device: torch.device | str, **options: Any
) -> Tensor:
    """`draw(shape)`, the same on all processes."""
    if _part is None:
        # Without even None for a generator, which torch does not compile for batches of any size.
        return draw(shape, device=device, **options)
    return draw(shape, device=device, generator=_part.generator(torch.device(device)), **options)


def sharers() -> int:
    """How many processes share the batch at hand: 1 in validation, where each takes batches of its own."""
    return 1 if _part is None else processes()


def gather(x: Tensor) -> Tensor:
    """The rows x [B, ...] of all processes, in the order of the batch: [sharers * B, ...], with gradients to
    all of them."""
    if sharers() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def own(x: Tensor) -> Tensor:
    """Of rows x [sharers * B, ...] of the whole batch, those of this process, [B, ...]."""
    return x if sharers() == 1 else x.chunk(sharers())[rank()]


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """The sum of x over all processes, the same to the last bit on each of them; without gradient."""
    if sharers() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


@torch.no_grad()
def take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of the whole batch, [K, D], by indices [K] that all processes share, of which this one has the
    rows x [N, D]."""
    if sharers() == 1:
        return x[indices]
    indices = indices - rank() * len(x)
    here = (indices >= 0) & (indices < len(x))
    return total(torch.where(here.unsqueeze(1), x[indices.clamp(0, len(x) - 1)], 0))


class _Gather(torch.autograd.Function):
    """All rows, of which the gradient is the sum of what all processes made of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(processes())[rank()]
