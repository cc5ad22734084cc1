"""N(0, I): the prior of Kingma & Welling 2014."""

from __future__ import annotations

import torch
from torch import Tensor

from vaezoo.config import BaseConfig
from vaezoo.distributions import DiagonalGaussian, Latent, Posterior
from vaezoo.priors.base import LatentShape, Prior, check_temperature


class StandardNormal(Prior):
    """N(0, I) over vectors; nothing to fit, KL to a diagonal Gaussian in closed form."""

    paper = "Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014"

    zeros: Tensor

    def __init__(self, config: BaseConfig, latent: LatentShape) -> None:
        super().__init__(config, latent)
        dim = latent.vector_dim("standard_normal")
        self.register_buffer("zeros", torch.zeros(dim), persistent=False)

    def _distribution(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.zeros, self.zeros)

    def log_prob(self, z: Latent) -> Tensor:
        assert isinstance(z, Tensor)
        return self._distribution().log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        check_temperature(temperature)
        return temperature * self._distribution().sample((n,), generator)

    def kl(self, q: Posterior, z: Latent) -> Tensor:
        if isinstance(q, DiagonalGaussian):
            return q.kl_per_dimension().sum(-1)
        return super().kl(q, z)
