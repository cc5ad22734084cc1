"""What training holds on the device: the formula of docs/speed.md, against the bytes that are alive."""

from __future__ import annotations

import math

import pytest
import torch
from memory import Memory

import vaezoo
from vaezoo.autoencoder import Autoencoder
from vaezoo.data import ImageData, ResidentSplit
from vaezoo.testing import progress

VALIDATION = 64


def made(size: int, hidden: int) -> Autoencoder:
    return vaezoo.create("vae", network_options={"hidden": [hidden]}, image_shape=(1, size, size))


def random_images(n: int, size: int) -> ImageData:
    pixels = torch.randint(256, (n, 1, size, size), generator=torch.Generator().manual_seed(0)).byte()
    train, held_out = ResidentSplit(pixels), ResidentSplit(pixels[:VALIDATION].clone())
    return ImageData("random", train, held_out, held_out, (1, size, size))


def held_by_a_batch(model: Autoencoder, batch: int) -> int:
    """The images as floats and what their losses keep for the gradient."""
    x = torch.rand(batch, *model.config.image_shape)
    with Memory() as memory:
        model.losses(x, progress(model))
    return memory.peak - 4 * sum(p.numel() for p in model.parameters())


def formula(model: Autoencoder, data: ImageData, batch: int) -> tuple[float, float]:
    """Lowest and highest bytes: the images and an epoch's order of them; weights, Adam's two averages and the
    best weights so far; the gradients, which come as what a batch holds, in proportion to its size, goes."""
    pixels = math.prod(data.image_shape)
    resident = len(data.train) * (pixels + 8) + len(data.validation) * pixels
    parameters = 4 * sum(p.numel() for p in model.parameters())
    held = batch * held_by_a_batch(model, 64) / 64
    return resident + 4 * parameters + max(parameters, held), resident + 5 * parameters + held


@pytest.mark.parametrize(("n", "hidden", "batch"), [(4000, 256, 100), (300, 1024, 30), (600, 64, 200)])
def test_the_memory_of_training(n, hidden, batch):
    """Of many images, of many parameters, of a large batch; an epoch that is the best yet costs no more."""
    model, data = made(16, hidden), random_images(n, 16)
    with Memory() as memory:
        run = vaezoo.train(model, data, epochs=2, batch_size=batch, device="cpu")
    assert run.best_step > run.steps // 2, "the best weights were not replaced"
    lowest, highest = formula(model, data, batch)
    assert 0.98 * lowest < memory.peak < 1.02 * highest


@pytest.mark.cuda
def test_the_memory_of_training_on_cuda():
    model, data = made(32, 8192), random_images(8000, 32)
    lowest, highest = formula(model, data, 256)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    vaezoo.train(model, data, epochs=3, batch_size=256, device="cuda")
    # cuBLAS takes some tens of megabytes for itself, and the allocator rounds up.
    assert 0.9 * lowest - 2**26 < torch.cuda.max_memory_allocated() - before < 1.1 * highest + 2**26
