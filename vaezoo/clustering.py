"""k-means: where codebooks and mixtures start, and cells to count in."""

from __future__ import annotations

import torch
from torch import Tensor

#: Distances that `nearest` holds at a time: on a CPU few enough to stay in its cache, which is a third faster
#: with thousands of centres; elsewhere many enough to fill the device.
DISTANCES_CPU, DISTANCES = 2**20, 2**26


def k_means(points: Tensor, k: int, generator: torch.Generator, iterations: int = 20) -> Tensor:
    """Centres [k, D] of points [N, D]: Lloyd's iterations from a k-means++ start.

    Args:
        points: where they are decides the device and the precision.
        k: number of centres; with fewer points, some lie on the same point.
        generator: on the CPU, so that the draws are the same on every device.
        iterations: of Lloyd's algorithm.
    """
    return lloyd(points, plus_plus(points, k, generator), iterations)


def plus_plus(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k of the points [N, D], each drawn in proportion to its squared distance to the nearest drawn before
    (k-means++, Arthur & Vassilvitskii 2007): [k, D]. Where all lie on drawn ones, any is as good."""
    uniform = torch.rand(k, dtype=torch.float64, generator=generator, device="cpu").to(points.device)
    weights = torch.ones(len(points), dtype=torch.float64, device=points.device)
    distances = torch.full_like(weights, torch.inf)
    centres = []
    for u in uniform:
        cumulative = weights.cumsum(0)
        # The first point whose cumulative weight is above u of the total: never one of weight 0.
        index = torch.searchsorted(cumulative, u * cumulative[-1:], right=True).clamp_max(len(points) - 1)
        centres.append(points[index])
        distances = torch.minimum(distances, (points - centres[-1]).square().sum(1))
        weights = distances
    return torch.cat(centres)


def lloyd(points: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """Move each centre [K, D] to the mean of the points [N, D] that it is the nearest centre of, again and
    again (Lloyd 1982). A centre that is nearest to none stays where it is."""
    for _ in range(iterations):
        n, sums = totals(points, nearest(points, centres), len(centres))
        centres = torch.where(n[:, None] > 0, sums / n.clamp_min(1)[:, None], centres)
    return centres


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest of the centres [K, D] of each of the points [N, D]: [N].

    Holds some distances at a time, not N K of them."""
    most = DISTANCES_CPU if points.device.type == "cpu" else DISTANCES
    with torch.autocast(points.device.type, enabled=False):
        # argmin |z - e|^2 = argmin |e|^2 / 2 - z.e, one matrix product and no N x K x D tensor.
        half_norms = 0.5 * centres.square().sum(1)
        # torch.export would fix the number of blocks, and with it that of the points.
        exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()  # torch 2.7
        blocks = (points,) if exporting else points.split(max(1, most // len(centres)))
        indices = [torch.addmm(half_norms, block, centres.T, alpha=-1).argmin(1) for block in blocks]
    return torch.cat(indices)


def totals(points: Tensor, groups: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How many of the points [N, D] are in each of k groups, [k], and their sums, [k, D].

    groups: integers from 0 to k - 1, [N]."""
    n = points.new_zeros(k).index_add_(0, groups, torch.ones_like(points[:, 0]))
    return n, points.new_zeros(k, points.shape[1]).index_add_(0, groups, points)
