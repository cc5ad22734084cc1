"""What happens to codes when a factor is held, or when only it is? beta-VAE and FactorVAE scores, and IRS."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

BATCH = 64  # images with a factor in common, for the beta-VAE and FactorVAE scores
ACTIVE = 0.05  # standard deviation from which on the FactorVAE score counts a dimension
QUANTILE = 0.99  # of deviations, for IRS

Array = NDArray[np.float64]
Values = NDArray[np.int64]
Encode = Callable[[Tensor], Tensor]
"""Codes [B, D] of images of given factors, value indices [B, F]."""


def fixed_factor_variances(
    encode: Encode, sizes: tuple[int, ...], candidates: tuple[int, ...], batches: int, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Variance of the codes within batches of 64 images that share one factor's value, drawn for each batch.

    Args:
        encode: images and codes of factors.
        sizes: number of values of each factor.
        candidates: the factors to share.
        batches: how many, V.
        draws: a generator on the CPU.

    Returns:
        Variances [V, D]; for each batch, which of the candidates was shared, long [V].
    """
    shared, variances = [], []
    for which, rows in _batches(sizes, candidates, batches, draws):
        same = torch.tensor(candidates)[which].view(-1, 1, 1).expand(-1, BATCH, 1)
        rows.scatter_(2, same, rows[:, :1].gather(2, same[:, :1]).expand(-1, BATCH, 1))
        codes = encode(rows.flatten(0, 1)).double().unflatten(0, (len(which), BATCH))
        shared.append(which.to(codes.device))
        deviations = codes - codes.mean(1, keepdim=True)
        variances.append(deviations.square().sum(1) / (BATCH - 1))  # several times faster than `var`
    return torch.cat(variances), torch.cat(shared)


def shared_factor_differences(
    encode: Encode, sizes: tuple[int, ...], candidates: tuple[int, ...], batches: int, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean absolute difference of codes over 64 pairs of images; the two of a pair share one factor's value.

    Which factor is drawn for each batch of pairs. Arguments and results: as in `fixed_factor_variances`."""
    shared, differences = [], []
    for which, rows in _batches(sizes, candidates, batches, draws, times=2):
        same = torch.tensor(candidates)[which].view(-1, 1, 1).expand(-1, BATCH, 1)
        first, second = rows.chunk(2, 1)
        second = second.scatter(2, same, first.gather(2, same))
        pairs = torch.stack([first, second])
        codes = encode(pairs.flatten(0, 2)).double().unflatten(0, pairs.shape[:3])
        shared.append(which.to(codes.device))
        differences.append((codes[0] - codes[1]).abs().mean(1))
    return torch.cat(differences), torch.cat(shared)


def _batches(
    sizes: tuple[int, ...],
    candidates: tuple[int, ...],
    batches: int,
    draws: torch.Generator,
    times: int = 1,
) -> Iterable[tuple[Tensor, Tensor]]:
    """Some batches at a time: index of a candidate for each [V], and uniform factors [V, times 64, F]."""
    for start in range(0, batches, 64):
        count = min(64, batches - start)
        shape = (count, times * BATCH)
        columns = [torch.randint(size, shape, generator=draws) for size in sizes]
        yield torch.randint(len(candidates), (count,), generator=draws), torch.stack(columns, 2)


def factor_vae_score(
    variances: Tensor,
    shared: Tensor,
    test_variances: Tensor,
    test_shared: Tensor,
    total: Tensor,
    factors: int,
) -> Tensor:
    """Which test batches a majority vote attributes to the factor that they share: bool [V].

    Kim & Mnih 2018. Each batch names the dimension that varies least in it, relative to its variance overall;
    each dimension stands for the factor that it was named for most often. Dimensions of standard deviation
    below 0.05 overall are left out; if all are, no batch is attributed.

    Args:
        variances: within the batches that vote, [U, D].
        shared: factor that each shares, long [U].
        test_variances: [V, D].
        test_shared: long [V].
        total: variance of each dimension overall, [D].
        factors: how many there are; `shared` is below.
    """
    pruned = total.sqrt() < ACTIVE
    safe = torch.where(pruned, 1.0, total)

    def named(within: Tensor) -> Tensor:
        return (within / safe).masked_fill(pruned, torch.inf).argmin(1)

    votes = torch.zeros(len(total), factors, device=total.device)
    votes.index_put_((named(variances), shared), torch.ones((), device=total.device), accumulate=True)
    return (votes.argmax(1)[named(test_variances)] == test_shared) & ~pruned.all()


def beta_vae_score(
    differences: Array, shared: Values, test_differences: Array, test_shared: Values
) -> NDArray[np.bool_]:
    """Which test batches logistic regression attributes to the factor that their pairs share: bool [V].

    Higgins et al. 2017.

    Args:
        differences: mean absolute differences of codes over the pairs of a batch, [U, D].
        shared: factor that each shares, [U].
        test_differences: [V, D].
        test_shared: [V].
    """
    classifier = LogisticRegression(max_iter=1000, random_state=0).fit(differences, shared)
    correct: NDArray[np.bool_] = classifier.predict(test_differences) == test_shared
    return correct


def interventional_robustness(codes: Tensor, factors: Tensor, bins: int) -> Tensor:
    """IRS (Suter et al. 2019): does a dimension stay where it is while one factor does? Scalar in [0, 1].

    1 - deviation / greatest deviation of each dimension, for the factor for which that is greatest, weighted
    by the greatest deviations. A deviation is that from the mean of the points of one value, its 99th
    percentile, as a mean over values (Locatello et al. 2019; Suter et al. take the maximum). 0 if all codes
    are constant.

    Args:
        codes: real numbers, [N, D].
        factors: value or bin indices, long [N, F].
        bins: indices are below it.
    """
    codes = codes.double()
    dims = codes.shape[1]
    greatest = (codes - codes.mean(0)).abs().amax(0)
    robustness = []
    for values in factors.unbind(1):
        ones = torch.ones(len(values), dtype=codes.dtype, device=codes.device)
        counts = ones.new_zeros(bins).index_add_(0, values, ones)
        sums = codes.new_zeros(bins, dims).index_add_(0, values, codes)
        deviations = (codes - (sums / counts.clamp_min(1).unsqueeze(1))[values]).abs()
        by_size = deviations.argsort(0)
        order = by_size.gather(0, values[by_size].argsort(dim=0, stable=True))
        ordered = deviations.gather(0, order)  # by value and, within it, by size
        first = counts.cumsum(0) - counts
        place = first + QUANTILE * (counts - 1).clamp_min(0)
        below = place.floor().long().clamp_max(len(codes) - 1)
        above = place.ceil().long().clamp_max(len(codes) - 1)
        quantiles = torch.lerp(ordered[below], ordered[above], (place - place.floor()).unsqueeze(1))
        occurs = (counts > 0).to(codes.dtype)
        robustness.append(1 - occurs @ quantiles / occurs.sum() / torch.where(greatest > 0, greatest, 1.0))
    best = torch.stack(robustness).amax(0)
    total = greatest.sum()
    return (best * greatest).sum() / torch.where(total > 0, total, 1.0)
