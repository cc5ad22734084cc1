"""Does each factor of variation have a latent dimension of its own?

The protocol is that of Locatello et al. 2019: 10,000 codes of factors drawn uniformly and independently."""

from __future__ import annotations

import torch
from torch import Tensor

from vaezoo.data import Factor
from vaezoo.evaluation.report import Metric, Results, Skipped

POINTS = 10_000
BINS = 20


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


def mutual_information(a: Tensor, sizes_a: int, b: Tensor, sizes_b: int) -> Tensor:
    """Mutual information of discrete variables, from their joint counts: nats [D].

    Args:
        a: integers below `sizes_a`, [N, D].
        b: integers below `sizes_b`, [N].
    """
    n, dims = a.shape
    cell = (torch.arange(dims, device=a.device) * sizes_a + a) * sizes_b + b.unsqueeze(1)
    ones = torch.ones(n * dims, dtype=torch.float64, device=a.device)
    counts = ones.new_zeros(dims * sizes_a * sizes_b).index_add_(0, cell.flatten(), ones)
    joint = counts.view(dims, sizes_a, sizes_b) / n
    return (_entropy(joint.sum(2)) + _entropy(joint.sum(1)) - _entropy(joint.flatten(1))).clamp_min(0)


def _entropy(p: Tensor) -> Tensor:
    """Of probabilities along the last dimension, nats."""
    return -torch.xlogy(p, p).sum(-1)


def mutual_information_gap(codes: Tensor, factors: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Gap (I1 - I2) / H of each factor between the two dimensions that know most about it: [F] in [0, 1].

    Its mean over the factors is the MIG (Chen et al. 2018, eq. 6). A factor that does not vary has no entropy
    and gives NaN; leave it out.

    Args:
        codes: real numbers, [N, D], D at least 2.
        factors: value indices, long [N, F].
        sizes: number of values of each factor.
    """
    bins = discretize(codes)
    gaps = []
    for column, size in enumerate(sizes):
        values = factors[:, column]
        first, second = mutual_information(bins, BINS, values, size).topk(2).values
        gaps.append((first - second) / mutual_information(values.unsqueeze(1), size, values, size)[0])
    return torch.stack(gaps)


def measure_disentanglement(codes: Tensor, factors: Tensor, names: tuple[Factor, ...], how: str) -> Results:
    """MIG of codes [N, D] and factors [N, F]; `how` says how the factors were drawn."""
    if codes.shape[1] < 2:
        return {"mig": Skipped("the gap is between two dimensions, and the latent has one")}
    varies = (factors.amin(0) < factors.amax(0)).tolist()
    used = [i for i, factor in enumerate(names) if factor.size > 0 and varies[i]]
    if not used:
        return {"mig": Skipped("no discrete factor varies")}
    chosen = [names[i] for i in used]
    gaps = mutual_information_gap(codes, factors[:, used].long(), tuple(f.size for f in chosen)).tolist()
    parts = [", ".join(f"{factor.name} {gap:.3f}" for factor, gap in zip(chosen, gaps)), how]
    if len(used) < len(names):
        left_out = ", ".join(names[i].name for i in range(len(names)) if i not in used)
        parts.append(f"without {left_out} (continuous, or of one value)")
    mig = sum(gaps) / len(gaps)
    return {"mig": Metric(mig, len(codes), "", None, "higher", "; ".join(parts))}
