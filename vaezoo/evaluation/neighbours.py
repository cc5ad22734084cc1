"""Nearest neighbours: do generated features lie among the real ones, and real ones among them?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DISTANCES = 2**23  # distances that are held at a time
K_PRECISION, K_DENSITY = 3, 5
PARTS, PARTITIONS = 4, 3


def at_least_single(features: Tensor) -> Tensor:
    """Half precision and integers are for storage: sums of squares do not survive them."""
    return features if features.dtype == torch.float64 else features.float()


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances of all rows of a [N, d] and b [M, d]: [N, M].

    By |a|^2 + |b|^2 - 2 a.b, so that it is a matrix product; what is within its rounding error is 0, so that
    equal rows are at distance 0. Few dimensions, in which many rows are that close, are worth no product.
    """
    if a.shape[1] <= 8:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    scale = a.square().sum(1, keepdim=True) + b.square().sum(1)
    squared = torch.addmm(scale, a, b.T, alpha=-2)
    return squared.mul_(squared > scale.mul_(8 * torch.finfo(a.dtype).eps))


def neighbour_radii(features: Tensor, ks: Sequence[int]) -> Tensor:
    """Squared distance of each row of features [N, d] to its k-th nearest other row: [N, len(ks)]."""
    radii = []
    for block in features.split(max(1, DISTANCES // len(features))):
        # The nearest row is the row itself, so the k-th other one is the (k + 1)-th.
        nearest = squared_distances(block, features).topk(max(ks) + 1, dim=1, largest=False).values
        radii.append(nearest[:, list(ks)])
    return torch.cat(radii)


class Neighbourhoods(NamedTuple):
    """What `neighbourhoods` finds, one number for each of N reals or M fakes; means are the metrics."""

    precision: Tensor  # [M], 0 or 1
    recall: Tensor  # [N], 0 or 1
    density: Tensor  # [M]
    coverage: Tensor  # [N], 0 or 1


def neighbourhoods(
    real: Tensor, fake: Tensor, k_precision: int = K_PRECISION, k_density: int = K_DENSITY
) -> Neighbourhoods:
    """Who lies in whose neighbourhoods. The ball of a row reaches to its k-th nearest row of the same set.

    Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2): which fakes lie in the ball of
    some real, and which reals in that of some fake. Density and coverage (Naeem et al. 2020, eq. 3 and 4):
    how many balls of reals each fake lies in, over k, and which of these balls hold a fake.

    Args:
        real: features [N, d], N > k.
        fake: features [M, d], M > k.
        k_precision, k_density: neighbours for the first pair and for the second.
    """
    mean = real.mean(0)
    real, fake = real - mean, fake - mean  # the rounding error of distances grows with the norms
    narrow, wide = neighbour_radii(real, (k_precision, k_density)).unbind(1)
    fake_radii = neighbour_radii(fake, (k_precision,))
    precision, density = [], []
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    rows = max(1, DISTANCES // len(real))
    for block, radii in zip(fake.split(rows), fake_radii.split(rows)):
        distances = squared_distances(block, real)
        precision.append((distances <= narrow).any(1))
        recalled |= (distances <= radii).any(0)
        inside = distances <= wide
        density.append(inside.sum(1) / k_density)
        covered |= inside.any(0)
    return Neighbourhoods(torch.cat(precision).float(), recalled.float(), torch.cat(density), covered.float())


def neighbourhood_variances(real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """Sampling variances of precision, recall, density and coverage: [4], float64.

    From the spread of their values over disjoint quarters of both sets, as 1/n, averaged over random ways to
    quarter. Unlike the binomial variance of rows in balls that are held fixed, this includes that the balls
    are random.

    Args:
        real, fake: [N, d] and [M, d]; a quarter must have more rows than there are neighbours.
        generator: draws the quarters, on the CPU.
    """
    variances = []
    for _ in range(PARTITIONS):
        parts = [
            x[torch.randperm(len(x), generator=generator).to(x.device)].chunk(PARTS) for x in (real, fake)
        ]
        values = [
            torch.stack([v.mean(dtype=torch.float64) for v in neighbourhoods(r, f)]) for r, f in zip(*parts)
        ]
        variances.append(torch.stack(values).var(0) / PARTS)
    return torch.stack(variances).mean(0)


def nearest(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each row of queries [N, d] to the nearest of points [M, d], and its index: [N], [N]."""
    mean = points.mean(0)
    queries, points = queries - mean, points - mean
    distances, indices = [], []
    for block in queries.split(max(1, DISTANCES // len(points))):
        index = squared_distances(block, points).argmin(1)
        # Anew, by the difference: it does not lose the small distances that matter here.
        distances.append((block - points[index]).norm(dim=1))
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)
