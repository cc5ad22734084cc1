"""The VampPrior: a mixture of the model's own posteriors, trained with the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from vaezoo.config import BaseConfig
from vaezoo.distributed import total
from vaezoo.distributions import DiagonalGaussian, Latent, Posterior, log_density_of_each
from vaezoo.errors import VaezooError
from vaezoo.priors.base import LatentShape, Prior, check_temperature

#: Latents whose densities under all components are held at a time, few enough for a processor's cache.
BLOCK = 512

#: Standard deviation of the noise on an image at which another pseudo-input starts already.
AGAIN = 0.1


class VampPrior(Prior):
    """Variational mixture of posteriors: p(z) = 1/K sum_k q(z|u_k), with K pseudo-inputs u that are learned.

    With the training images themselves as pseudo-inputs it is the aggregate posterior, the best prior there
    is for the ELBO. A model has it from the start: `vaezoo.create("vae", prior="vamp", components=500)`.
    Pseudo-inputs start at training images, and are clamped to the range of images. (The published code starts
    them from noise, and those pixels that the clamp holds get no gradient.)

    Args:
        config: the options.
        latent: of the model.
        posterior: the model's `encode`, by which z of a pseudo-input is distributed in training and sampling
            alike.
    """

    paper = "Tomczak & Welling, AISTATS 2018, arXiv:1705.07120"

    class Config(BaseConfig):
        components: int = Field(500, ge=1, description="number of pseudo-inputs")
        image_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
            (1, 28, 28), description="channels, height and width of a pseudo-input"
        )

    config: Config

    def __init__(
        self, config: Config, latent: LatentShape, posterior: Callable[[Tensor], Posterior] | None = None
    ) -> None:
        super().__init__(config, latent)
        latent.vector_dim("vamp")
        if posterior is None:
            raise VaezooError(
                "vamp is made of a model's posteriors and trains with it, so it cannot be fitted afterwards: "
                'create the model with it, vaezoo.create("vae", prior="vamp")'
            )
        self.posterior = posterior
        self.pseudo_inputs = nn.Parameter(torch.rand(config.components, *config.image_shape))

    @torch.no_grad()
    def initialize_inputs(self, x: Tensor) -> None:
        """Start from images [N, C, H, W] drawn at random. If there are not enough, some are drawn again and
        get noise, since equal pseudo-inputs have equal gradients and would stay equal."""
        order = torch.randperm(len(x), device=x.device)
        start = x[order.repeat(-(-self.config.components // len(x)))[: len(self.pseudo_inputs)]]
        if len(start) > len(x):
            start[len(x) :] += AGAIN * torch.randn_like(start[len(x) :])
        self.pseudo_inputs.copy_(start)

    def mixture(self) -> DiagonalGaussian:
        """q(z|u_k) of all pseudo-inputs, of means and variances [K, D]."""
        q = self.posterior(_Clamp.apply(self.pseudo_inputs))
        assert isinstance(q, DiagonalGaussian), "the prior of a model with another posterior"
        return q

    def log_prob(self, z: Latent) -> Tensor:
        assert isinstance(z, Tensor)
        q = self.mixture()
        log_sums = [_log_sum(log_density_of_each(q, block)) for block in z.split(BLOCK)]
        return torch.cat(log_sums) - math.log(self.config.components)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        check_temperature(temperature)
        q = self.mixture()
        chosen = torch.randint(self.config.components, (n,), device=q.mean.device, generator=generator)
        log_variance = q.log_variance[chosen] + 2 * math.log(temperature)
        return DiagonalGaussian(q.mean[chosen], log_variance).sample(generator=generator)


def _log_sum(logits: Tensor) -> Tensor:
    """logsumexp over the last dimension. Terms that are too small to count are raised to e^-80 of the
    largest, because exp takes ten times as long where it underflows."""
    largest = logits.detach().amax(-1, keepdim=True)
    return (logits - largest).clamp_min(-80).logsumexp(-1) + largest.squeeze(-1)


class _Clamp(torch.autograd.Function):
    """x.clamp(0, 1) without the gradients by which a step would lead (further) outside.

    `clamp` itself has none at 0 and 1, where the pixels of binary images start, nor beyond, where a step may
    have led: such pixels would stay where they are for ever.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        whole = total(gradient)  # the step is that of all processes together
        return gradient * (((x >= 0) | (whole < 0)) & ((x <= 1) | (whole > 0)))
