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

    By |a|^2 + |b|^2 - 2 a.b, so that it is a matrix product; less its rounding error, so that equal rows are
    at distance 0. Few dimensions, in which many rows are that close, are worth no product.
    """
    if a.shape[1] <= 8:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
    shrink = 1 - 8 * torch.finfo(a.dtype).eps
    norms = shrink * a.square().sum(1, keepdim=True) + shrink * b.square().sum(1)
    return norms.addmm_(a, b.T, alpha=-2).clamp_min_(0)


def neighbour_radii(features: Tensor, ks: Sequence[int]) -> Tensor:
    """Squared distance of each row of features [N, d] to its k-th nearest other row: [N, len(ks)]."""
    radii = features.new_empty(len(features), len(ks))
    size = max(1, DISTANCES // len(features))
    # Results go into place: small tensors kept among large ones that come and go would fragment the memory.
    for block, radius in zip(features.split(size), radii.split(size)):
        # The nearest row is the row itself, so the k-th other one is the (k + 1)-th.
        nearest = squared_distances(block, features).topk(max(ks) + 1, dim=1, largest=False).values
        radius.copy_(nearest[:, list(ks)])
    return radii


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
    precise, recalled, covered = (
        torch.zeros(len(x), dtype=torch.bool, device=real.device) for x in (fake, real, real)
    )
    inside = torch.zeros(len(fake), dtype=torch.long, device=real.device)
    size = max(1, DISTANCES // len(real))
    for block, radii, hit, count in zip(*(x.split(size) for x in (fake, fake_radii, precise, inside))):
        distances = squared_distances(block, real)
        hit |= (distances <= narrow).any(1)
        recalled |= (distances <= radii).any(0)
        in_wide = distances <= wide
        count += in_wide.sum(1)
        covered |= in_wide.any(0)
    return Neighbourhoods(precise.float(), recalled.float(), inside / k_density, covered.float())


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
    indices = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    size = max(1, DISTANCES // len(points))
    for block, index in zip(queries.split(size), indices.split(size)):
        index.copy_(squared_distances(block, points).argmin(1))
    # Anew, by the difference: it does not lose the small distances that matter here.
    return (queries - points[indices]).norm(dim=1), indices
