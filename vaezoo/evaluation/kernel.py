"""Kernels on features: how far two sets are apart (KID), and how diverse one is (the Vendi score)."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4096  # rows that are held in float64 at a time
PAIRS = 2**23  # kernel values that are held at a time


def kernel_distance(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared maximum mean discrepancy of features [N, d] and [M, d], and its sampling variance. Scalars.

    The unbiased estimator of Gretton et al. (2012) over all pairs, with the kernel (x.y/d + 1)^3 of the
    kernel Inception distance (Binkowski et al. 2018). Where the truth is 0, it is below 0 about as often as
    above.

    The variance is in closed form, by Hoeffding's decomposition: with k~ the kernel centred in both arguments
    and w the witness function (the mean of k over x less that over y),

        4 Var w(x)/N + 4 Var w(y)/M + 2 E k~(x, x')^2/N^2 + 2 E k~(y, y')^2/M^2 + 4 E k~(x, y)^2/(N M).

    The second-order terms are all there is where the distributions are the same.

    Args:
        x, y: at least 2 rows each; float32 or float64. Sums are in float64.
    """
    n, m = len(x), len(y)
    # Row sums [N], column sums [M] and the sum of squares; the diagonal is not part of the estimator.
    (sum_xx, _, square_xx), diagonal_x = _kernel_sums(x, x), _kernel_diagonal(x)
    (sum_yy, _, square_yy), diagonal_y = _kernel_sums(y, y), _kernel_diagonal(y)
    sum_xy, sum_yx, square_xy = _kernel_sums(x, y)
    mean_xx, mean_yy = (sum_xx - diagonal_x) / (n - 1), (sum_yy - diagonal_y) / (m - 1)
    mean_xy, mean_yx = sum_xy / m, sum_yx / n
    distance = mean_xx.mean() + mean_yy.mean() - 2 * mean_xy.mean()

    centred_xx = _centred((square_xx - diagonal_x.square().sum()) / (n * (n - 1)), mean_xx, mean_xx)
    centred_yy = _centred((square_yy - diagonal_y.square().sum()) / (m * (m - 1)), mean_yy, mean_yy)
    centred_xy = _centred(square_xy / (n * m), mean_xy, mean_yx)
    second = 2 * centred_xx / (n * (n - 1)) + 2 * centred_yy / (m * (m - 1)) + 4 * centred_xy / (n * m)
    # The witness is seen through means of finitely many rows: its variance counts the second order twice.
    witness = 4 * (mean_xx - mean_xy).var() / n + 4 * (mean_yy - mean_yx).var() / m
    # The difference is unbiased; where it is by chance far below what it cannot be below, it is cut off.
    return distance, torch.maximum(witness - second, second / 2)


def _centred(mean_square: Tensor, row_means: Tensor, column_means: Tensor) -> Tensor:
    """Mean square of a matrix less its row and column means, from the mean square of the matrix."""
    mean = row_means.mean()
    return (mean_square - row_means.square().mean() - column_means.square().mean() + mean**2).clamp_min(0)


def _kernel_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row sums [N], column sums [M] and sum of squares of the kernel matrix, in float64."""
    rows, columns = (x.new_zeros(len(points), dtype=torch.float64) for points in (x, y))
    squares = columns.new_zeros(())
    size = max(1, PAIRS // len(y))
    # Results go into place: small tensors kept among large ones that come and go would fragment the memory.
    for block, row in zip(x.split(size), rows.split(size)):
        base = (block @ y.T).double().div_(x.shape[1]).add_(1)
        values = base.square().mul_(base)
        row += values.sum(1)
        columns += values.sum(0)
        squares += values.square_().sum()
    return rows, columns, squares


def _kernel_diagonal(x: Tensor) -> Tensor:
    """k(x, x) of each row: [N]."""
    return (x.square().sum(1, dtype=torch.float64) / x.shape[1] + 1) ** 3


def vendi_score(features: Tensor) -> tuple[Tensor, Tensor]:
    """Vendi score of features [N, d] and its sampling variance (Friedman & Dieng 2023). Scalars.

    exp of the entropy -sum l log l of the eigenvalues l of K/N, where K [N, N] holds the cosines of all
    pairs: the effective number of different rows, 1 to min(N, d). They are also the eigenvalues of the mean
    of u u' [d, d], u = x/|x|, which costs N d^2. To first order a row moves l by (v'u)^2 - l, v being the
    eigenvector, so its influence on the entropy is -sum log l (v'u)^2.

    Args:
        features: no row is zero.
    """
    d = features.shape[1]
    second_moment = features.new_zeros(d, d, dtype=torch.float64)
    for block in features.split(BLOCK):
        unit = torch.nn.functional.normalize(block.double(), dim=1)
        second_moment.addmm_(unit.T, unit)
    values, vectors = torch.linalg.eigh(second_moment / len(features))
    # Eigenvalues that are 0 but for rounding have eigenvectors on which no row has a component.
    logs = values.clamp_min(d * torch.finfo(values.dtype).eps).log()
    influence = torch.cat(
        [
            -((torch.nn.functional.normalize(block.double(), dim=1) @ vectors).square() @ logs)
            for block in features.split(BLOCK)
        ]
    )
    score = influence.mean().exp()  # the mean of the influences is the entropy
    return score, score.square() * influence.var() / len(features)
