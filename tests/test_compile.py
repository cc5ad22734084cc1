"""`torch.compile` takes the losses of every model as one graph, and gives those of eager execution."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor

import vaezoo
from vaezoo.autoencoder import Autoencoder, Loss, Progress
from vaezoo.random import generator, seeded
from vaezoo.registry import MODELS
from vaezoo.testing import fresh

MODEL_NAMES = pytest.mark.parametrize("name", vaezoo.list_models())

#: Images in the batch of each step.
SAME, ANY = (6, 6, 6), (6, 6, 5, 9)

Losses = list[dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


def make(name: str, device: str = "cpu") -> Autoencoder:
    """A model ready for the first step, whose loss depends on the step's number if it has a schedule."""
    fields = MODELS.get(name).Config.model_fields
    options = {"kl_warmup_steps": 4} if "kl_warmup_steps" in fields else {}
    model = fresh(lambda: vaezoo.create(name, **options)).to(device)
    with seeded(0, device):
        model.initialize(images(model, 64, seed=0))
    return model.train()


def images(model: Autoencoder, n: int, seed: int) -> Tensor:
    """Of noise, so that no two code vectors are equally near: what is equal to rounding is not compared."""
    device = next(model.parameters()).device
    return torch.rand(n, *model.config.image_shape, generator=generator(seed, "cpu")).to(device)


def steps(
    model: Autoencoder, sizes: tuple[int, ...], compiled: Callable[..., Any] = lambda losses: losses
) -> Losses:
    """Losses, terms, gradients and buffers of some steps, each on its own batch, without an optimiser."""
    device = next(model.parameters()).device

    @compiled
    def losses(x: Tensor, step: Tensor) -> dict[str, Loss]:
        return model.losses(x, Progress(step, 100, 1000))

    found = []
    for step, n in enumerate(sizes):
        model.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        with seeded(step, device):
            result = losses(images(model, n, seed=step), torch.tensor(float(step), device=device))
        torch.stack([loss.total for loss in result.values()]).sum().backward()
        values = {f"{group} loss": loss.total for group, loss in result.items()}
        values |= {f"{group} {k}": v for group, loss in result.items() for k, v in loss.terms.items()}
        values |= {f"gradient of {k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
        found.append({k: v.detach().clone() for k, v in (values | dict(model.named_buffers())).items()})
    return found


def assert_same(found: Losses, expected: Losses, tolerance: float) -> None:
    for ours, eager in zip(found, expected, strict=True):
        assert ours.keys() == eager.keys()
        for name, value in eager.items():
            error = (ours[name] - value).norm()
            assert error <= tolerance * value.norm(), f"{name} is off by {error:.2g} of {value.norm():.2g}"


@MODEL_NAMES
def test_losses_are_one_graph_for_all_steps(name):
    """No break in the graph, none compiled anew as the step rises, and the gradients of eager execution. The
    second size of batches is compiled for all sizes."""
    model = make(name)
    graphs = CompileCounterWithBackend("aot_eager")
    expected = steps(copy.deepcopy(model), ANY)
    found = steps(model, ANY, torch.compile(fullgraph=True, backend=graphs))
    assert graphs.frame_count == 2
    assert_same(found, expected, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "vq_vae"])
def test_the_losses_of_inductor_are_those_of_eager_execution(name):
    model = make(name)
    with inductor.patch(fallback_random=True):  # draws as eager execution does
        found = steps(copy.deepcopy(model), SAME, torch.compile(fullgraph=True))
    assert_same(found, steps(model, SAME), 1e-4)


@pytest.mark.cuda
@MODEL_NAMES
def test_cuda_graphs_give_the_losses_of_eager_execution(name):
    model = make(name, "cuda")
    with inductor.patch(fallback_random=True):
        found = steps(copy.deepcopy(model), SAME, torch.compile(fullgraph=True, mode="reduce-overhead"))
    assert_same(found, steps(model, SAME), 1e-3)
