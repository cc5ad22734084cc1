"""Are the dimensions of codes independent? Scores that need no factors, of Locatello et al. 2019."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from vaezoo.evaluation.information import BINS, discretize, pointwise_information
from vaezoo.evaluation.report import Metric, Results, Skipped, average

UNSUPERVISED = (
    "gaussian_total_correlation",
    "gaussian_wasserstein_correlation",
    "gaussian_wasserstein_correlation_norm",
    "mutual_information_score",
)
SINGULAR = 1e-12  # least eigenvalue of a correlation matrix of rank D


def gaussian_total_correlation(covariance: Tensor) -> Tensor:
    """KL from a Gaussian to the product of its marginals, -log det(correlation) / 2: scalar, nats.

    covariance [D, D], positive definite."""
    return (covariance.diagonal().log().sum() - torch.linalg.slogdet(covariance)[1]) / 2


def gaussian_wasserstein_correlation(covariance: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of a Gaussian and the product of its marginals: scalar, units of z².

    2 tr C - 2 tr (S C S)^1/2 with S² the diagonal of C. covariance [D, D], positive semidefinite."""
    scale = covariance.diagonal().sqrt()
    product = scale.unsqueeze(1) * covariance * scale
    eigenvalues = torch.linalg.eigvalsh(product)
    # Of eigenvalues that are rounding errors the root has no derivative.
    tiny = eigenvalues[-1] * len(eigenvalues) * torch.finfo(product.dtype).eps
    roots = torch.where(eigenvalues > tiny, eigenvalues, 1.0).sqrt() * (eigenvalues > tiny)
    return 2 * covariance.trace() - 2 * roots.sum()


def gaussian_wasserstein_correlation_norm(covariance: Tensor) -> Tensor:
    """`gaussian_wasserstein_correlation` over the sum of variances: scalar in [0, 2)."""
    return gaussian_wasserstein_correlation(covariance) / covariance.trace()


def covariance_score(centred: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A score of the covariance and its standard error by the delta method, both on the CPU.

    Args:
        centred: codes minus their mean, float64 [N, D].
        score: [D, D] -> scalar.
    """
    n = len(centred)
    covariance = (centred.T @ centred / (n - 1)).cpu()
    gradient = jacobian(score, covariance).to(centred)
    influence = ((centred @ gradient) * centred).sum(1)  # up to a constant
    return score(covariance), influence.std().cpu() / n**0.5


def pairwise_information(codes: Tensor) -> Tensor:
    """What each point says of the mutual information of two dimensions, mean over all pairs: nats [N].

    Each dimension in 20 bins of equal width. codes [N, D], D at least 2."""
    bins = discretize(codes)
    n, dims = bins.shape
    total = torch.zeros(n, dtype=torch.float64, device=codes.device)
    for d in range(dims - 1):
        total += pointwise_information(bins[:, d + 1 :], BINS, bins[:, d], BINS).sum(1)
    return total / (dims * (dims - 1) / 2)


def measure_unsupervised(codes: Tensor, how: str) -> Results:
    """Every metric of `UNSUPERVISED`, or why there is none.

    Args:
        codes: [N, D].
        how: says of which images they are.
    """
    n, dims = codes.shape
    bad = int((~codes.isfinite().all(1)).sum())
    if bad:
        return dict.fromkeys(UNSUPERVISED, Skipped(f"{bad} of {n} codes are not finite"))
    if n < 2:
        return dict.fromkeys(UNSUPERVISED, Skipped("it needs at least 2 codes"))
    if dims < 2:
        return dict.fromkeys(UNSUPERVISED, Skipped("it compares dimensions, and the latent has one"))
    varies = codes.amin(0) < codes.amax(0)
    varying = codes[:, varies].double()
    left_out = dims - varying.shape[1]
    note = "; ".join([f"{left_out} of {dims} dimensions are constant"] * (left_out > 0) + [how])
    results: Results = {}
    if varying.shape[1] == 0:
        results = dict.fromkeys(UNSUPERVISED[:3], Skipped("all codes are constant"))
    else:
        centred = varying - varying.mean(0)
        normed = centred / centred.square().mean(0).sqrt()
        least = torch.linalg.eigvalsh(normed.T @ normed / n)[0]
        if n <= varying.shape[1] or least.item() < SINGULAR:
            results[UNSUPERVISED[0]] = Skipped(
                "it is infinite: a dimension is a linear function of the others"
                if n > varying.shape[1]
                else f"{n} codes have no covariance matrix of full rank in {varying.shape[1]} dimensions"
            )
        else:
            results[UNSUPERVISED[0]] = _metric(centred, gaussian_total_correlation, "nats", note)
        results[UNSUPERVISED[1]] = _metric(centred, gaussian_wasserstein_correlation, "units of z²", note)
        results[UNSUPERVISED[2]] = _metric(centred, gaussian_wasserstein_correlation_norm, "", note)
    results[UNSUPERVISED[3]] = average(pairwise_information(codes), "nats", "lower", f"{BINS} bins; {how}")
    return results


def _metric(centred: Tensor, score: Callable[[Tensor], Tensor], unit: str, note: str) -> Metric:
    value, error = covariance_score(centred, score)
    return Metric(value.item(), len(centred), unit, error.item(), "lower", f"se by the delta method; {note}")
