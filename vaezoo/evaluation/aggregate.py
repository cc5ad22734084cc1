"""How do the latents of all images lie together, and does the prior know it?

The aggregate posterior q(z) = 1/N sum_n q(z|x_n) is taken over the observed images, all of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaezoo.autoencoder import Autoencoder
from vaezoo.distributions import DiagonalGaussian, log_aggregate
from vaezoo.errors import NotFittedError
from vaezoo.evaluation.report import Result, Results, Skipped, average
from vaezoo.priors.base import Prior
from vaezoo.priors.gaussian_mixture import GaussianMixture
from vaezoo.random import derive, generator

if TYPE_CHECKING:
    from vaezoo.evaluation.observe import Observed

POINTS = 1000  # z at which q(z) is computed; each costs as many densities as there are images and dimensions
DENSITIES = 2**20  # densities that are held at a time
BLOCK = 1024  # rows that a prior scores at a time
COMPONENTS = (1, 2, 5, 10)  # Gaussians of the fitted mixtures; ten are those of Ghosh et al. 2020
POINTS_PER_DIMENSION = 10  # that each Gaussian has at least, so that its covariance can be estimated

NO_VECTOR = "the latents are code grids, not one vector"
POINT_MASSES = "q(z|x) is a point mass: it has no density"
SPLIT = ("mutual_information", "total_correlation", "dimension_wise_kl")


def measure_aggregate(model: Autoencoder, observed: Observed, seed: int) -> Results:
    """The rate in three parts, and how much of it a prior that is fitted to q(z) would save."""
    if observed.draws is None:
        return dict.fromkeys((*SPLIT, "prior_hole"), Skipped(NO_VECTOR))
    try:
        prior = model.require_prior()
    except NotFittedError as error:
        return dict.fromkeys((*SPLIT, "prior_hole"), Skipped(str(error)))
    return measure_split(prior, observed, seed) | {"prior_hole": prior_hole(prior, observed.draws, seed)}


# --- The rate in three parts ------------------------------------------------------------------------------


def aggregate_log_probs(q: DiagonalGaussian, z: Tensor) -> tuple[Tensor, Tensor]:
    """log q(z), [M] nats, and log q(z_d), [M, D] nats, of the mean of N posteriors, at z [M, D]."""
    log_weights = z.new_full((1, 1), -math.log(len(q.loc)))
    rows = max(1, DENSITIES // q.loc.numel())
    joint, marginals = zip(*(log_aggregate(q, block, log_weights) for block in z.split(rows)))
    return torch.cat(joint), torch.cat(marginals)


def measure_split(prior: Prior, observed: Observed, seed: int) -> Results:
    """Mutual information, total correlation and dimension-wise KL (Hoffman & Johnson 2016; Chen et al. 2018,
    eq. 2), which sum to the rate:

    E log q(z|x)/q(z) + E log q(z)/prod_d q(z_d) + E log prod_d q(z_d)/p(z).

    E is over images and z ~ q(z|x), at `POINTS` of the draws. That q(z) changes with the images adds nothing
    to the standard errors in first order: a change of q(z) that keeps its integral moves E_q(z) log q(z) only
    through the points that the mean is over.
    """
    z, means, log_variances = observed.draws, observed.means, observed.log_variances
    if z is None or means is None:
        return dict.fromkeys(SPLIT, Skipped(NO_VECTOR))
    if log_variances is None:
        kind = POINT_MASSES if observed.deterministic else "q(z|x) is not a diagonal Gaussian"
        return dict.fromkeys(SPLIT, Skipped(kind))
    n = len(z)
    if n < 2:
        return dict.fromkeys(SPLIT, Skipped("an aggregate posterior needs at least 2 images"))
    rows = torch.randperm(n, generator=generator(derive(seed, "points"), "cpu"))[:POINTS].to(z.device)
    points = z[rows]
    joint, marginals = aggregate_log_probs(DiagonalGaussian(means, log_variances), points)
    own = DiagonalGaussian(means[rows], log_variances[rows]).log_prob(points)
    product = marginals.sum(1)
    information = own - joint

    # q(z|x) is one of the N terms of q(z), which bounds their ratio by N. Where it is most of q(z), more
    # images of the same distribution would show that q(z) is lower there, and the information greater: where
    # the share is small, by half of it.
    share = (information.double().exp() / n).mean().item()
    saturated = share > 0.1
    how = f"{len(points)} z; q(z) of all {n} images, {share:.0%} of it the image's own"
    low = f"; at most log {n} = {math.log(n):.2f}" + ("; saturated: too low" if saturated else "")
    high = "; saturated: too high by what mutual_information lacks" if saturated else ""
    return {
        "mutual_information": average(information, "nats per image", None, how + low),
        "total_correlation": average(joint - product, "nats per image", None, how + high),
        "dimension_wise_kl": average(product - prior.log_prob(points), "nats per image", None, how),
    }


# --- The hole in the prior --------------------------------------------------------------------------------


def prior_hole(prior: Prior, z: Tensor, seed: int) -> Result:
    """E_q(z)[log p'(z) - log p(z)] with a mixture p' of Gaussians that is fitted to q(z): nats per image.

    That is what the rate would be lower by with p' for a prior (ex-post density estimation, Ghosh et al.
    2020), and a lower bound on KL(q(z) || p(z)). Mixtures of `COMPONENTS` Gaussians are fitted to one half of
    the images; the best on a quarter is measured on the last quarter.

    Args:
        prior: the model's own, p(z).
        z: a draw of q(z|x) for each image, [N, D].
        seed: of the parts and of the fits.
    """
    n, dims = z.shape
    order = torch.randperm(n, generator=generator(derive(seed, "parts"), "cpu")).to(z.device)
    fitted_to, chosen_on, measured_on = z[order].tensor_split([n // 2, 3 * n // 4])
    sizes = [k for k in COMPONENTS if k * POINTS_PER_DIMENSION * dims <= len(fitted_to)]
    if not sizes:
        needed = 2 * POINTS_PER_DIMENSION * dims
        return Skipped(f"to fit a Gaussian in {dims} dimensions takes {needed} images, not {n}")
    if not bool(z.isfinite().all()):
        return Skipped("some z are not finite")
    eigenvalues = torch.linalg.eigvalsh(torch.cov(fitted_to.double().T).reshape(dims, dims))
    if bool(eigenvalues[0] <= 1e-6 * eigenvalues.mean()):
        return Skipped("q(z) lies on a subspace, where no density is the best")

    def fit(components: int) -> GaussianMixture:
        mixture = GaussianMixture(GaussianMixture.Config(components=components), prior.latent).to(z)
        mixture.fit(fitted_to, derive(seed, "mixture", components) % 2**32)
        return mixture

    best = max(map(fit, sizes), key=lambda mixture: _log_prob(mixture, chosen_on).mean().item())
    k = best.config.components
    kind = "Gaussian" if k == 1 else f"mixture of {k} Gaussians"
    note = f"{kind} fitted to {len(fitted_to)} images, chosen and measured on others; se for this fit"
    saved = _log_prob(best, measured_on) - _log_prob(prior, measured_on)
    return average(saved, "nats per image", "lower", note)


def _log_prob(prior: Prior, z: Tensor) -> Tensor:
    """log p(z) of any number of z [N, D], a block at a time: [N] nats."""
    return torch.cat([prior.log_prob(block) for block in z.split(BLOCK)])
