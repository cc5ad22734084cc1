"""Mutual information of codes and factors, and the scores that are functions of it, with standard errors.

Information is a mean over points of what each point says, so a score of it has a standard error by the delta
method: the score's gradient weighs what the points say. Bins, and which dimensions are first and second, are
taken as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

BINS = 20
NEIGHBOURS = 10
ACTIVE_RANGE = 1 / 20  # of the widest dimension's range, from which on InfoMEC counts a dimension
NO_INFORMATION = 1e-12  # nats; below are rounding errors

Score = Callable[[Tensor, Tensor], Tensor]
"""Of the mutual information [D, F] and the factors' entropies [F], nats; any shape."""


@dataclass(frozen=True)
class Information:
    """What the codes of N points say about F factors, in nats.

    Attributes:
        pointwise: log p(z_d, f) / (p(z_d) p(f)) at each point, [F, N, D]; its mean over points is the mutual
            information.
        surprisal: -log p(f) of each point's value, [F, N]; its mean is the entropy.
    """

    pointwise: Tensor
    surprisal: Tensor

    @property
    def matrix(self) -> Tensor:
        """Mutual information of each dimension and factor, at least 0: [D, F]."""
        return self.pointwise.mean(1).T.clamp_min(0)

    @property
    def matrix_error(self) -> Tensor:
        """Its standard error: [D, F]."""
        return self.pointwise.std(1).T / self.pointwise.shape[1] ** 0.5

    @property
    def entropies(self) -> Tensor:
        """Of the factors: [F]."""
        return self.surprisal.mean(1)

    def measure(self, score: Score) -> tuple[Tensor, Tensor]:
        """A score and its standard error by the delta method, both on the CPU."""
        # Derivatives of a few numbers are not worth a device's time.
        information, entropies = self.pointwise.mean(1).T.cpu(), self.entropies.cpu()

        def value(information: Tensor, entropies: Tensor) -> Tensor:
            return score(information.clamp_min(0), entropies)

        by_information, by_entropy = jacobian(value, (information, entropies))
        influence = torch.einsum("fnd,...df->...n", self.pointwise, by_information.to(self.pointwise))
        influence = influence + by_entropy.to(self.surprisal) @ self.surprisal
        error = influence.std(-1) / influence.shape[-1] ** 0.5
        return value(information, entropies), error.cpu()

    def bootstrap(self, score: Score, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A score and its standard error by the multiplier bootstrap, for scores that bend too much for the
        delta method: ratios of numbers near 0.

        Args:
            score: scalar, of a batch of [D, F] and [F] too.
            noise: standard normal, [draws, N]."""
        n = noise.shape[1]
        pointwise = self.pointwise - self.pointwise.mean(1, keepdim=True)
        moved = torch.einsum("bn,fnd->bdf", noise, pointwise) / n + self.pointwise.mean(1).T
        entropies = self.entropies + noise @ (self.surprisal - self.entropies.unsqueeze(1)).T / n
        return score(self.matrix, self.entropies), score(moved.clamp_min(0), entropies).std(0)


# --- Estimators ------------------------------------------------------------------------------------------


def discretize(codes: Tensor, bins: int = BINS) -> Tensor:
    """Bin of each code: `bins` of equal width between the least and the greatest value of each dimension.

    codes [N, D] -> long [N, D] in 0 to bins - 1; a constant dimension is in one bin."""
    codes = codes.double()
    low, high = codes.amin(0), codes.amax(0)
    steps = torch.arange(bins, dtype=codes.dtype, device=codes.device).unsqueeze(1)
    edges = low + steps * (
        (high - low) / bins
    )  # the last edge is dropped: the greatest value is in the last bin
    return torch.searchsorted(edges.T.contiguous(), codes.T.contiguous(), right=True).T - 1


def pointwise_information(a: Tensor, sizes_a: int, b: Tensor, sizes_b: int) -> Tensor:
    """log p(a, b) / (p(a) p(b)) at each point, from the counts of all: nats [N, D].

    Its mean over the points is the mutual information.

    Args:
        a: integers below `sizes_a`, [N, D].
        b: integers below `sizes_b`, [N].
    """
    n, dims = a.shape
    cell = (torch.arange(dims, device=a.device) * sizes_a + a) * sizes_b + b.unsqueeze(1)
    ones = torch.ones(n * dims, dtype=torch.float64, device=a.device)
    counts = ones.new_zeros(dims * sizes_a * sizes_b).index_add_(0, cell.flatten(), ones)
    joint = counts.view(dims, sizes_a, sizes_b) / n
    independent = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    ratio = torch.where(joint > 0, (joint / independent).log(), 0.0)  # cells that no point is in are not read
    return ratio.flatten()[cell]


def surprisal(values: Tensor, size: int) -> Tensor:
    """-log of the share of points that have each point's value. values long [N] below `size` -> nats [N]."""
    ones = torch.ones(len(values), dtype=torch.float64, device=values.device)
    return -(ones.new_zeros(size).index_add_(0, values, ones) / len(values)).log()[values]


def binned_information(codes: Tensor, factors: Tensor, sizes: tuple[int, ...]) -> Information:
    """With the codes in 20 bins of equal width.

    Args:
        codes: real numbers, [N, D].
        factors: value indices, long [N, F].
        sizes: number of values of each factor.
    """
    bins = discretize(codes)
    values = list(zip(factors.unbind(1), sizes))
    pointwise = [pointwise_information(bins, BINS, value, size) for value, size in values]
    return Information(
        torch.stack(pointwise), torch.stack([surprisal(value, size) for value, size in values])
    )


def neighbour_information(
    codes: Tensor, factors: Tensor, sizes: tuple[int, ...], neighbours: int = NEIGHBOURS
) -> Information:
    """Without bins: how far each code's neighbours of equal value reach, among codes of any value.

    Ross 2014: digamma(N) + digamma(k) - digamma(points of the value) - digamma(points nearer than the k-th
    neighbour of equal value). A value of k points or less has fewer neighbours; one that occurs once says
    nothing.

    Args:
        codes: real numbers, no two equal in a dimension, [N, D]; see `without_ties`.
        factors: value indices, long [N, F].
        sizes: number of values of each factor.
        neighbours: k.
    """
    codes = codes.double()
    by_code = codes.argsort(0)
    ordered = codes.gather(0, by_code).T.contiguous()
    n = len(codes)
    place = torch.arange(n, device=codes.device)
    margin = 4 * torch.finfo(codes.dtype).eps * codes.abs().amax(0)
    pointwise = []
    for values, size in zip(factors.unbind(1), sizes):
        counts = torch.zeros(size, dtype=torch.long, device=codes.device)
        counts = counts.index_add_(0, values, torch.ones_like(values))
        # Sorted by value and, within it, by code, the k nearest of a point are a window of k + 1 around it.
        order = by_code.gather(0, values[by_code].argsort(dim=0, stable=True))
        x = codes.gather(0, order)
        value = values.sort().values
        count = counts[value]
        first = counts.cumsum(0)[value] - count
        k = (count - 1).clamp_max(neighbours)
        radius = torch.full_like(x, torch.inf)
        for smaller in range(neighbours + 1):  # so many of the k nearest are below the point
            low, high = place - smaller, place - smaller + k
            inside = (smaller <= k) & (low >= first) & (high < first + count)
            reach = torch.maximum(x - x[low.clamp_min(0)], x[high.clamp(0, n - 1)] - x)
            radius = torch.where(inside.unsqueeze(1), torch.minimum(radius, reach), radius)
        # Nearer than the k-th: of all values, the point itself included. The margin is that of rounding.
        radius = radius - margin
        above = torch.searchsorted(ordered, (x + radius).T.contiguous())
        below = torch.searchsorted(ordered, (x - radius).T.contiguous(), right=True)
        within = (above - below).T.clamp_min(1).double().digamma()
        constant = torch.full_like(k, n).double().digamma() + k.double().digamma() - count.double().digamma()
        says = torch.where((k > 0).unsqueeze(1), constant.unsqueeze(1) - within, 0.0)
        pointwise.append(torch.zeros_like(x).scatter_(0, order, says))
    surprisals = [surprisal(values, size) for values, size in zip(factors.unbind(1), sizes)]
    return Information(torch.stack(pointwise), torch.stack(surprisals))


def without_ties(codes: Tensor, noise: Tensor) -> Tensor:
    """Codes of mean 0 and standard deviation 1, moved by 1e-10 of standard normal noise. Both [N, D]."""
    codes = codes.double()
    scale = codes.std(0, correction=0)
    return (codes - codes.mean(0)) / torch.where(scale > 0, scale, 1.0) + 1e-10 * noise


# --- Scores ----------------------------------------------------------------------------------------------


def mutual_information_gap(information: Tensor, entropies: Tensor) -> Tensor:
    """Gap (I1 - I2) / H of each factor between the two dimensions that know most about it: [F] in [0, 1].

    Its mean over the factors is the MIG (Chen et al. 2018, eq. 6). A factor that does not vary has no entropy
    and gives NaN; leave it out.

    Args:
        information: mutual information of code and factor, [D, F], D at least 2.
        entropies: of the factors, [F].
    """
    first, second = information.topk(2, dim=0).values
    return (first - second) / entropies


def modularity(information: Tensor) -> Tensor:
    """1 - (sum of I^2 - max I^2) / (max I^2 (F - 1)) of each code: [D] in [0, 1].

    Ridgeway & Mozer 2018. 1 if the code knows of one factor alone; 0 if it knows as much of every factor, or
    nothing.

    Args:
        information: mutual information of code and factor, [D, F], F at least 2.
    """
    informed = information.amax(1) > NO_INFORMATION
    squared = information.square()
    most = torch.where(informed, squared.amax(1), 1.0)
    rest = (squared.sum(1) - most) / (most * (information.shape[1] - 1))
    return torch.where(informed, 1 - rest, 0.0)


def info_modularity(information: Tensor, entropies: Tensor) -> Tensor:
    """InfoM (Hsu et al. 2023): is what a dimension knows about one factor? In [0, 1].

    With the share of each factor's entropy that a dimension knows, the greatest share over the sum of the
    dimension's, as a mean over dimensions, rescaled so that equal shares give 0. A dimension that knows
    nothing counts 0.

    Args:
        information: mutual information of active codes and factors, [..., A, F], F at least 2.
        entropies: of the factors, [..., F].
    """
    return _dominance(information / entropies.unsqueeze(-2))


def info_compactness(information: Tensor, entropies: Tensor) -> Tensor:
    """InfoC (Hsu et al. 2023): as `info_modularity`, but the greatest share of each factor among dimensions.

    Args:
        information: [..., A, F], A at least 2.
        entropies: [..., F].
    """
    return _dominance((information / entropies.unsqueeze(-2)).mT)


def _dominance(shares: Tensor) -> Tensor:
    """Greatest over sum of each row, mean over rows, rescaled from [1 / columns, 1] to [0, 1]."""
    total = shares.sum(-1)
    known = total > NO_INFORMATION
    least = 1 / shares.shape[-1]
    greatest = torch.where(known, shares.amax(-1) / torch.where(known, total, 1.0), least)
    return (greatest.mean(-1) - least) / (1 - least)


def active_by_range(codes: Tensor) -> Tensor:
    """Dimensions whose range is more than a twentieth of the widest's, as InfoMEC counts them: bool [D]."""
    ranges = codes.amax(0) - codes.amin(0)
    return ranges > ranges.max() * ACTIVE_RANGE
