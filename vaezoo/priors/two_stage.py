"""A second VAE over latent vectors, trained on the latents after the model."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from vaezoo.config import BaseConfig
from vaezoo.distributions import LOG_2PI, DiagonalGaussian, Latent
from vaezoo.inference import inference
from vaezoo.objective import Loss, Progress
from vaezoo.priors.base import LatentShape, Prior, check_temperature, mean_and_scale
from vaezoo.random import generator as make_generator

#: Least gamma, as a fraction of the latents' standard deviation. Where latents lie on a surface, or a decoder
#: learns them by heart, the likelihood has no maximum: it grows without end as gamma goes to 0.
FLOOR = 0.01

#: Bound on the log-variance of q(u|z): an untypical latent costs many nats, and overflows nothing.
LOG_VARIANCE = 15.0

#: gamma at the start. From 1, as far out as the latents themselves, u would stay unused.
GAMMA = 0.3

#: Draws u by which `log_prob` scores a latent.
SAMPLES = 16


class TwoStagePrior(Prior):
    """The second VAE of the two-stage VAE: u ~ N(0, I), p(z|u) = N(decoder(u), gamma^2), q(u|z) Gaussian.

    u has as many dimensions as z. gamma is one learned number, in units of the latents' standard deviations.
    Both networks read their input again in their last layer, as in the paper. It starts as the Gaussian with
    the mean and the variances of the latents, with q(u|z) the exact posterior, so that u is in use
    from the first step.

    There is no exact log p(z). It is trained on the ELBO, and scored by the importance-weighted bound with 16
    draws of u (Burda et al. 2016, eq. 8), which is below log p(z) on average over the noise behind the draws.
    That noise is made once, from seed 0, and kept with the weights: the score of a latent is always the same,
    and changes steadily with z. So what the noise leaves of an error is shared by all images and does not
    average out over them. Likelihoods and rates that use this prior are bounds in the same sense.
    """

    paper = "Dai & Wipf, Diagnosing and Enhancing VAE Models, ICLR 2019, arXiv:1903.05789"
    recipes = {"*": {"lr": 1e-3, "lr_schedule": "cosine", "clip": 5.0, "batch_size": 256, "epochs": 20}}

    class Config(BaseConfig):
        hidden: int = Field(256, ge=1, description="units in each hidden layer (1024 in the paper)")
        depth: int = Field(3, ge=1, le=16, description="hidden layers of the encoder, and of the decoder")

    config: Config
    mean: Tensor
    scale: Tensor
    noise: Tensor

    def __init__(self, config: Config, latent: LatentShape) -> None:
        super().__init__(config, latent)
        dim = latent.vector_dim("two_stage")
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("noise", spread_noise(SAMPLES, dim, make_generator(0, "cpu")).to(self.mean))
        self.encoder = Skip(dim, config.hidden, config.depth, 2 * dim)
        self.decoder = Skip(dim, config.hidden, config.depth, dim)
        self.log_gamma = nn.Parameter(torch.tensor(0.5 * math.log(GAMMA**2 - FLOOR**2)))
        # With z = w u + gamma * noise, w^2 + gamma^2 = 1, the posterior is N(w z, gamma^2).
        weight = math.sqrt(1 - GAMMA**2) * torch.eye(dim)
        with torch.no_grad():
            self.encoder.head.weight[:dim, config.hidden :] = weight
            self.decoder.head.weight[:, config.hidden :] = weight
            self.encoder.head.bias[dim:] = LOG_VARIANCE * math.atanh(2 * math.log(GAMMA) / LOG_VARIANCE)

    def initialize(self, z: Latent) -> None:
        assert isinstance(z, Tensor)
        mean, scale = mean_and_scale(z)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def encode(self, z: Tensor) -> DiagonalGaussian:
        """q(u|z) of latents z [B, D]."""
        features = self.encoder((z - self.mean) / self.scale).to(self.mean)  # not in half precision
        mean, log_variance = features.chunk(2, 1)
        return DiagonalGaussian(mean, LOG_VARIANCE * torch.tanh(log_variance / LOG_VARIANCE))

    def decode(self, u: Tensor) -> DiagonalGaussian:
        """p(z|u) at u [B, D], of z in its own units."""
        log_gamma_squared = torch.log(torch.exp(2 * self.log_gamma) + FLOOR**2)
        log_variance = log_gamma_squared + 2 * self.scale.log()
        mean = self.mean + self.scale * self.decoder(u).to(self.mean)
        return DiagonalGaussian(mean, log_variance.expand_as(mean))

    def losses(self, z: Latent, progress: Progress) -> dict[str, Loss]:
        """Negative ELBO of the latents, distortion + rate, nats per image, with one draw of u for each."""
        assert isinstance(z, Tensor)
        q = self.encode(z)
        distortion = -self.decode(q.rsample()).log_prob(z).mean()
        rate = q.kl_per_dimension().sum(1).mean()
        bound = distortion + rate
        return {"prior": Loss(bound, {"prior_nll": bound, "distortion": distortion, "rate": rate})}

    def log_prob(self, z: Latent) -> Tensor:
        """Importance-weighted lower bound on log p(z), [B] nats: log 1/k sum_i p(z|u_i) p(u_i) / q(u_i|z)."""
        assert isinstance(z, Tensor)
        q = self.encode(z)
        deviation = q.variance.sqrt()
        log_weights = []
        for noise in self.noise:  # one after the other: no more memory than for one
            u = q.mean + deviation * noise
            log_p = self.decode(u).log_prob(z) - 0.5 * (u.square() + LOG_2PI).sum(1)
            log_weights.append(log_p - q.log_prob(u))
        return torch.stack(log_weights).logsumexp(0) - math.log(len(log_weights))

    @inference
    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        check_temperature(temperature)
        mean = self.mean
        noise = torch.randn(2, n, len(mean), dtype=mean.dtype, device=mean.device, generator=generator)
        p = self.decode(temperature * noise[0])
        return p.mean + temperature * p.variance.sqrt() * noise[1]


def spread_noise(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """n points of N(0, I), spread evenly over the quantiles of each dimension: [n, dim].

    A Latin hypercube (McKay, Beckman & Conover 1979): in each dimension one point in each n-th part of the
    probability, in random order. Each point by itself is N(0, I), so averages over the points are unbiased.

    Args:
        generator: on the CPU, where the points are made.
    """
    parts = torch.stack([torch.randperm(n, generator=generator, device="cpu") for _ in range(dim)], 1)
    within = torch.rand(n, dim, dtype=torch.float64, generator=generator, device="cpu")
    return torch.special.ndtri(((parts + within) / n).clamp(1e-9, 1 - 1e-9))  # finite


class Skip(nn.Module):
    """MLP [B, inputs] -> [B, outputs] whose last layer reads the input again beside the last hidden layer."""

    def __init__(self, inputs: int, hidden: int, depth: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([inputs, *[hidden] * depth]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(hidden + inputs, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.layers(x), x], 1))
