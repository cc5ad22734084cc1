"""A linear VAE at the optimum of probabilistic PCA: every quantity of it is known in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import vaezoo
from vaezoo.models.vae import VAE


@dataclass
class Linear:
    """The model, data drawn from it [N, 1, 4, 4], its covariance's eigenvalues and its noise variance."""

    model: VAE
    images: Tensor
    eigenvalues: Tensor
    noise: float

    def log_likelihood(self) -> Tensor:
        """log p(x) of each image, exactly: [N] nats."""
        weight, bias = self.model.decoder[0].weight, self.model.decoder[0].bias
        covariance = weight @ weight.T + self.noise * torch.eye(len(weight), dtype=weight.dtype)
        normal = torch.distributions.MultivariateNormal(bias, covariance)
        return normal.log_prob(self.images.flatten(1)).detach()


def make_linear(signal: list[float], noise: float = 0.04, latents: int | None = None, n: int = 400) -> Linear:
    """Data ~ N(mean, C) in 16 dimensions, C with eigenvalues `signal`, then `noise`.

    W = U (L - s2 I)^1/2; the posterior is exact, N(M^-1 W'(x - mean), s2 M^-1) with M = W'W + s2 I
    (Tipping & Bishop 1999; Lucas et al. 2019).
    """
    generator = torch.Generator().manual_seed(0)
    dims, latents = 16, latents or len(signal)
    eigenvalues = torch.tensor([*signal, *[noise] * (dims - len(signal))], dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(dims, dims, dtype=torch.float64, generator=generator)).Q
    mean = torch.rand(dims, dtype=torch.float64, generator=generator)
    weight = basis[:, :latents] * (eigenvalues[:latents] - noise).clamp_min(0).sqrt()
    precision = weight.square().sum(0) + noise  # M is diagonal
    model = vaezoo.create(
        "vae",
        image_shape=(1, 4, 4),
        latent_dim=latents,
        network_options={"hidden": ()},
        likelihood="gaussian",
    ).double()
    assert isinstance(model, VAE)
    encoder, decoder = model.encoder[1], model.decoder[0]
    with torch.no_grad():
        decoder.weight.copy_(weight)
        decoder.bias.copy_(mean)
        to_mean = weight.T / precision.unsqueeze(1)
        encoder.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        encoder.bias.copy_(torch.cat([-to_mean @ mean, (noise / precision).log()]))
        model.likelihood.log_scale.copy_(torch.tensor(noise, dtype=torch.float64).log() / 2)
    draws = torch.randn(n, dims, dtype=torch.float64, generator=generator)
    images = mean + draws * eigenvalues.sqrt() @ basis.T
    return Linear(model, images.view(n, 1, 4, 4), eigenvalues, noise)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, threads on small tensors wait a hundred times as long as they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def linear() -> Linear:
    return make_linear([1.0, 0.5, 0.2])
