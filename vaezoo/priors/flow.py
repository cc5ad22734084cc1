"""A masked autoregressive flow over latent vectors, trained on the latents after the model."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vaezoo.config import BaseConfig
from vaezoo.distributions import LOG_2PI, Latent
from vaezoo.errors import VaezooError
from vaezoo.inference import inference
from vaezoo.priors.base import LatentShape, Prior, check_temperature, mean_and_scale

#: Bound on the logarithm of a layer's scale: an untypical latent costs many nats, and overflows nothing.
LOG_SCALE = 5.0


class FlowPrior(Prior):
    """Masked autoregressive flow: z standardised, then layers u_d = (z_d - m_d(z_<d)) exp(-s_d(z_<d)).

    log p(z) = log N(u; 0, I) + log |det du/dz|, where the determinant is that of a triangular matrix. The
    order of the dimensions is reversed between layers. `log_prob` takes one pass, `sample` one pass for each
    dimension of each layer. It starts as the Gaussian with the mean and the variances of the latents.
    """

    paper = "Papamakarios, Pavlakou & Murray, Masked Autoregressive Flow for Density Estimation, NeurIPS 2017"
    recipes = {"*": {"lr": 1e-3, "lr_schedule": "cosine", "clip": 5.0, "batch_size": 256, "epochs": 20}}

    class Config(BaseConfig):
        layers: int = Field(5, ge=1, le=64, description="autoregressive layers")
        hidden: int = Field(128, ge=1, description="units in each hidden layer of a layer's network")
        depth: int = Field(2, ge=1, le=16, description="hidden layers of a layer's network")

    config: Config
    mean: Tensor
    scale: Tensor

    def __init__(self, config: Config, latent: LatentShape) -> None:
        super().__init__(config, latent)
        dim = latent.vector_dim("flow")
        if config.hidden < dim - 1:
            raise VaezooError(
                f"flow: hidden={config.hidden} is too small for a latent of {dim} dimensions: below "
                f"{dim - 1} some of them could not depend on others"
            )
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.layers = nn.ModuleList(Masked(dim, config.hidden, config.depth) for _ in range(config.layers))

    def initialize(self, z: Latent) -> None:
        assert isinstance(z, Tensor)
        mean, scale = mean_and_scale(z)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Noise u [B, D] of latents z [B, D], and log |det du/dz|, [B]."""
        u = (z - self.mean) / self.scale
        log_det = -self.scale.log().sum().expand(len(z))
        for layer in self.layers:
            shift, log_scale = layer(u)
            u = ((u - shift) * torch.exp(-log_scale)).flip(1)
            log_det = log_det - log_scale.sum(1)
        return u, log_det

    def inverse(self, u: Tensor) -> Tensor:
        """Latents z [B, D] of noise u [B, D]: `forward` undone, one dimension after the other."""
        for layer in reversed(self.layers):
            noise = u.flip(1)
            u = torch.zeros_like(noise)
            for d in range(noise.shape[1]):
                shift, log_scale = layer(u)
                # Dimension d of both depends on the dimensions before it, which are final by now.
                u = torch.cat([u[:, :d], (noise * torch.exp(log_scale) + shift)[:, d:]], 1)
        return u * self.scale + self.mean

    def log_prob(self, z: Latent) -> Tensor:
        assert isinstance(z, Tensor)
        u, log_det = self.forward(z)
        return log_det - 0.5 * (u.square() + LOG_2PI).sum(1)

    @inference
    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        check_temperature(temperature)
        mean = self.mean
        noise = torch.randn(n, len(mean), dtype=mean.dtype, device=mean.device, generator=generator)
        return self.inverse(temperature * noise)


class Masked(nn.Module):
    """Shift and log scale of each dimension from the dimensions before it (MADE, Germain et al. 2015).

    Every unit has a degree d and reads what depends on dimensions up to d alone; degrees are spread evenly
    over 1 to D - 1, so that each dimension reaches all later ones.
    """

    def __init__(self, dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        inputs = torch.arange(1, dim + 1)
        units = torch.arange(hidden) % max(1, dim - 1) + 1
        degrees = [inputs, *[units] * depth]
        masks = [after[:, None] >= before for before, after in pairwise(degrees)]
        masks.append((inputs[:, None] > degrees[-1]).repeat(2, 1))
        linears = [nn.Linear(mask.shape[1], mask.shape[0]) for mask in masks]
        nn.init.zeros_(linears[-1].weight)
        nn.init.zeros_(linears[-1].bias)
        self.linears = nn.ModuleList(linears)
        for i, mask in enumerate(masks):
            self.register_buffer(f"mask{i}", mask.float(), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, D] -> shift and log scale, both [B, D]."""
        h = z
        for i, linear in enumerate(self.linears):
            assert isinstance(linear, nn.Linear)
            h = F.linear(F.relu(h) if i else h, linear.weight * getattr(self, f"mask{i}"), linear.bias)
        shift, log_scale = h.chunk(2, 1)
        return shift, LOG_SCALE * torch.tanh(log_scale / LOG_SCALE)
