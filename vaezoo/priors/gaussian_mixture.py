"""A Gaussian mixture fitted to the latents after training (ex-post density estimation)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vaezoo.clustering import k_means, nearest
from vaezoo.config import BaseConfig
from vaezoo.distributions import LOG_2PI, Latent
from vaezoo.errors import VaezooError
from vaezoo.priors.base import LatentShape, Prior, check_temperature
from vaezoo.random import generator as make_generator

CANDIDATES = (1, 2, 3, 5, 10, 20, 50)  # numbers of components that BIC chooses among
FLOOR = 1e-6  # least variance, as a fraction of the mean variance of the latents
TOLERANCE = 1e-3  # nats per latent; EM stops when an iteration gains less
ITERATIONS = 200
ROWS = 2**24  # numbers that the densities of a block of latents take

Covariance = Literal["full", "diagonal", "low_rank"]


class GaussianMixture(Prior):
    """Mixture of Gaussians, fitted by EM to the latents of the training images, on their device.

    Covariances are full, diagonal, or of low rank plus a multiple of the identity (mixture of probabilistic
    PCA, Tipping & Bishop 1999). The number of components is given, or chosen by BIC.
    """

    paper = "Ghosh et al., From Variational to Deterministic Autoencoders, ICLR 2020"

    class Config(BaseConfig):
        components: int | None = Field(
            10, ge=1, description="number of Gaussians (10 in the paper); none: the one with the least BIC"
        )
        covariance: Covariance = Field("full", description="full, diagonal or low_rank")
        rank: int = Field(5, ge=1, description="directions of a low_rank covariance besides the noise")
        max_latents: int = Field(100_000, ge=2, description="fit on at most this many latents")

    config: Config
    logits: Tensor
    means: Tensor
    cholesky: Tensor

    def __init__(self, config: Config, latent: LatentShape) -> None:
        super().__init__(config, latent)
        dim = latent.vector_dim("gaussian_mixture")
        if config.covariance == "low_rank" and config.rank >= dim:
            raise VaezooError(
                f"gaussian_mixture: rank={config.rank} is not low for a latent of {dim} dimensions; use a "
                "smaller one, or covariance='full'"
            )
        components = max(self._candidates())
        self.register_buffer("logits", torch.zeros(components))
        self.register_buffer("means", torch.zeros(components, dim))
        self.register_buffer("cholesky", torch.eye(dim).repeat(components, 1, 1))

    def _candidates(self) -> tuple[int, ...]:
        return CANDIDATES if self.config.components is None else (self.config.components,)

    def fit(self, z: Tensor, seed: int = 0) -> None:
        """EM from a k-means start drawn from `seed`. z [N, D]; N must exceed the number of components."""
        order = torch.randperm(len(z), generator=make_generator(seed, "cpu"))[: self.config.max_latents]
        z = z[order.to(z.device)].double()
        bad = int((~z.isfinite().all(1)).sum())
        if bad:
            raise VaezooError(f"gaussian_mixture: {bad} of {len(z)} latents are not finite")
        # EM is the same in any unit; in units of the latents themselves it cannot overflow.
        centre, unit = z.mean(0), z.var(0).mean().sqrt()
        candidates = [k for k in self._candidates() if k < len(z)]
        if not candidates:
            raise VaezooError(
                f"gaussian_mixture: {min(self._candidates())} components cannot be fitted to {len(z)} latents"
            )
        unit = torch.where(unit > 0, unit, 1.0)
        standard = (z - centre) / unit
        fits = [
            expectation_maximization(
                standard, hard_assignment(standard, k, seed), self.config.covariance, self.config.rank
            )
            for k in candidates
        ]
        best = min(fits, key=lambda fitted: self._bic(fitted, len(z)))
        self.logits = best.weights.log().to(self.logits)
        self.means = (best.means * unit + centre).to(self.means)
        self.cholesky = (best.cholesky * unit).to(self.cholesky)
        # The number of components that was chosen is part of what a checkpoint must know.
        self.config = self.config.model_copy(update={"components": len(best.weights)})

    def _bic(self, fitted: Mixture, n: int) -> float:
        """Schwarz 1978: parameters * log N - 2 log-likelihood."""
        k, dim = fitted.means.shape
        rank = self.config.rank
        free = {
            "full": dim * (dim + 1) // 2,
            "diagonal": dim,
            "low_rank": dim * rank - rank * (rank - 1) // 2 + 1,
        }
        parameters = k - 1 + k * dim + k * free[self.config.covariance]
        return parameters * math.log(n) - 2 * n * fitted.log_likelihoods[-1]

    def log_prob(self, z: Latent) -> Tensor:
        assert isinstance(z, Tensor)
        return torch.logsumexp(
            log_components(z, self.logits.log_softmax(0), self.means, self.cholesky), dim=1
        )

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        check_temperature(temperature)
        component = torch.multinomial(self.logits.softmax(0), n, replacement=True, generator=generator)
        noise = torch.randn(
            n, self.means.shape[1], 1, device=self.means.device, dtype=self.means.dtype, generator=generator
        )
        return self.means[component] + temperature * (self.cholesky[component] @ noise).squeeze(-1)


def log_components(z: Tensor, log_weights: Tensor, means: Tensor, cholesky: Tensor) -> Tensor:
    """log weight + log N(z; mean, L L') of each component, [N, K].

    Args:
        z: [N, D].
        log_weights: [K].
        means: [K, D].
        cholesky: lower triangular L, [K, D, D].
    """
    centred = (z.unsqueeze(1) - means).transpose(0, 1)  # [K, N, D]
    whitened = torch.linalg.solve_triangular(cholesky, centred.mT, upper=False)  # [K, D, N]
    log_det = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    log_density = -0.5 * (whitened.square().sum(1) + z.shape[-1] * LOG_2PI) - log_det
    return log_weights + log_density.T


@dataclass(frozen=True)
class Mixture:
    """What EM leaves: weights [K], means [K, D], Cholesky factors of the covariances [K, D, D], and the mean
    log-likelihood of a latent before every iteration, in nats."""

    weights: Tensor
    means: Tensor
    cholesky: Tensor
    log_likelihoods: list[float]


def expectation_maximization(
    z: Tensor, responsibilities: Tensor, covariance: Covariance = "full", rank: int = 1
) -> Mixture:
    """EM (Dempster, Laird & Rubin 1977) from a soft or hard assignment of the points to the components.

    Variances are kept above a millionth of the mean variance of z, so that no component collapses onto a
    point. A component that is left with less than one point starts again at the points that the others
    explain worst. Without either, the likelihood rises in every iteration.

    Args:
        z: [N, D], float64.
        responsibilities: rows sum to 1, [N, K].
    """
    floor = FLOOR * float(z.var(0, correction=0).mean()) + 1e-12
    spread = _constrain(z.T.cov(correction=0).unsqueeze(0), covariance, rank, floor)[0]
    log_prob = -(z - z.mean(0)).square().sum(1)  # ranks the points as one round Gaussian would
    log_likelihoods: list[float] = []
    for _ in range(ITERATIONS):
        counts = responsibilities.sum(0) + 10 * torch.finfo(z.dtype).eps
        means = responsibilities.T @ z / counts[:, None]
        scatter = torch.stack([_scatter(z - mean, r) for mean, r in zip(means, responsibilities.T)])
        covariances = _constrain(scatter / counts[:, None, None], covariance, rank, floor)
        lost = counts < 1
        if bool(lost.any()):
            worst = log_prob.topk(int(lost.sum()), largest=False).indices
            means[lost], covariances[lost], counts[lost] = z[worst], spread, len(z) / len(counts)
        weights = counts / counts.sum()
        cholesky = torch.linalg.cholesky(covariances)
        joint = torch.cat(
            [
                log_components(rows, weights.log(), means, cholesky)
                for rows in z.split(max(1, ROWS // means.numel()))
            ]
        )
        log_prob = joint.logsumexp(1)
        responsibilities = (joint - log_prob[:, None]).exp()
        log_likelihoods.append(float(log_prob.mean()))
        if len(log_likelihoods) > 1 and abs(log_likelihoods[-1] - log_likelihoods[-2]) < TOLERANCE:
            break
    return Mixture(weights, means, cholesky, log_likelihoods)


def _scatter(centred: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of outer products of centred points [N, D]: [D, D]."""
    return (centred * weights[:, None]).T @ centred


def _constrain(covariances: Tensor, kind: Covariance, rank: int, floor: float) -> Tensor:
    """The most likely covariances [K, D, D] of a kind, given the scatter matrices of the components."""
    if kind == "diagonal":
        return torch.diag_embed(covariances.diagonal(dim1=-2, dim2=-1) + floor)
    identity = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    if kind == "full":
        return covariances + floor * identity
    # Tipping & Bishop 1999: the noise is the mean of the eigenvalues that are left out.
    values, vectors = torch.linalg.eigh(covariances)
    noise = values[:, :-rank].mean(1).clamp_min(0) + floor
    values = torch.maximum(values, noise[:, None])
    values[:, :-rank] = noise[:, None]
    return (vectors * values[:, None, :]) @ vectors.mT


def hard_assignment(z: Tensor, k: int, seed: int) -> Tensor:
    """Where EM starts: the points z [N, D] in k clusters of k-means drawn from `seed`, 0 or 1, [N, k]."""
    centres = k_means(z, k, make_generator(seed, "cpu"))
    return torch.nn.functional.one_hot(nearest(z, centres), k).to(z)
