"""The Frechet distance of two sets of features, its sampling variance, and its value for infinitely many."""

from __future__ import annotations

import torch
from torch import Tensor

from vaezoo.evaluation.report import Better, Metric, Result, Results, Skipped

BLOCK = 4096  # rows that are held in float64 at a time


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and unbiased covariance [d, d] of features [N, d], in float64, a block of rows at a time."""
    mean = features.mean(0, dtype=torch.float64)
    covariance = mean.new_zeros(len(mean), len(mean))
    for block in features.split(BLOCK):
        centred = block - mean
        covariance.addmm_(centred.T, centred)
    return mean, covariance / (len(features) - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """Squared Frechet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017). Scalar.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2). The last trace is that of the square root of the symmetric
    C1^1/2 C2 C1^1/2, so eigenvalues of symmetric matrices do, singular ones included.

    Args:
        mean1, mean2: [d], float64.
        cov1, cov2: [d, d], float64.
    """
    root, _ = _roots(cov1)
    product = root @ cov2 @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross


def frechet(features1: Tensor, features2: Tensor, paired: bool = False) -> tuple[Tensor, Tensor]:
    """Frechet distance of two sets of features [N, d] and [M, d], and its sampling variance. Scalars.

    The variance is that of each row's influence on the distance, over the number of rows (delta method). With
    T the optimal transport map from the first Gaussian to the second, d tr(C1 C2)^1/2 / dC1 = T / 2, so the
    influence of x = m1 + c is 2 c.(m1 - m2) + c.c - c'Tc, up to a constant. Where the two distributions are
    the same this vanishes, and its empirical variance is twice that of the distance: the standard error is
    up to 1.4 times too large there.

    Args:
        features1, features2: drawn independently, unless they are
        paired: N = M, and row i of one belongs to row i of the other, as a reconstruction does to its image.
    """
    (mean1, cov1), (mean2, cov2) = moments(features1), moments(features2)
    root, inverse_root = _roots(cov1)
    product_root, inverse_product_root = _roots(root @ cov2 @ root)
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * product_root.trace()
    there = inverse_root @ product_root @ inverse_root
    back = root @ inverse_product_root @ root
    influence1 = _influence(features1, mean1, mean2, there)
    influence2 = _influence(features2, mean2, mean1, back)
    if paired:
        return distance, (influence1 + influence2).var() / len(features1)
    return distance, influence1.var() / len(features1) + influence2.var() / len(features2)


def _influence(x: Tensor, mean: Tensor, other: Tensor, transport: Tensor) -> Tensor:
    """Of each row of x [N, d]: [N]."""
    blocks = []
    for block in x.split(BLOCK):
        centred = block - mean
        quadratic = (centred * (centred - centred @ transport)).sum(1)
        blocks.append(quadratic + 2 * centred @ (mean - other))
    return torch.cat(blocks)


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Square root of a symmetric positive semidefinite matrix, and the pseudo-inverse of the root."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values = values.clamp_min(0)
    used = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(used, values, 1).rsqrt() * used
    return (vectors * values.sqrt()) @ vectors.T, (vectors * inverse) @ vectors.T


def frechet_infinity(
    features1: Tensor, features2: Tensor, distance: Tensor, generator: torch.Generator
) -> Tensor:
    """The Frechet distance that infinitely many rows would have. Scalar; it may be below 0.

    The distance rises by b/n with n rows (Chong & Forsyth 2020). Here the line in 1/n goes through all rows
    and through the mean of two disjoint halves, with both sets halved, so what is removed is the bias of
    both. Halves that make up the whole have no first-order noise of their own (this is the jackknife of
    Quenouille 1956), and the variance that `frechet` returns is that of the extrapolation to second order.

    Args:
        features1, features2: [N, d] and [M, d].
        distance: of all rows.
        generator: draws the halves, on the CPU.
    """
    halves1, halves2 = (
        x[torch.randperm(len(x), generator=generator).to(x.device)].chunk(2) for x in (features1, features2)
    )
    halves = [frechet_distance(*moments(a), *moments(b)) for a, b in zip(halves1, halves2)]
    return 2 * distance - (halves[0] + halves[1]) / 2


def measure_frechet(
    name: str,
    a: Tensor,
    b: Tensor,
    note: str = "",
    better: Better | None = "lower",
    generator: torch.Generator | None = None,
) -> Results:
    """The distance between features [N, d] and [M, d]; with a generator also `name`_infinity."""
    n, d = min(len(a), len(b)), a.shape[1]
    names = [name] if generator is None else [name, f"{name}_infinity"]
    if n < 2:
        return dict.fromkeys(names, Skipped("a covariance needs at least 2 images"))
    distance, variance = frechet(a, b)
    singular = f"covariances are singular, {n} images have no more than {d} features" if n <= d else ""
    values = [distance]
    if generator is not None and n // 2 > d:
        values.append(frechet_infinity(a, b, distance, generator))
    *numbers, se = torch.stack([*values, variance.sqrt()]).tolist()

    def metric(value: float, *notes: str) -> Result:
        joined = "; ".join(filter(None, [*notes, "se by the delta method"]))
        return Metric(value, len(a), "squared distance", se, better, joined)

    results: Results = {name: metric(numbers[0], note, singular)}
    if generator is not None:
        results[f"{name}_infinity"] = (
            metric(numbers[1], note, "by the line in 1/n through all images and halves of both sets")
            if n // 2 > d
            else Skipped(f"half of {n} images are no more than {d} features: no line in 1/n")
        )
    return results
