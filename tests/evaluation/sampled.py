"""Factors, noise, and the test that a standard error is that of repeated sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SIZES = (3, 6, 10)


def drawn(n: int = 10_000, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Tensor:
    """Factors, uniform and independent: long [n, F]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (n,), generator=generator) for size in sizes], 1)


def noise(n: int, dims: int, seed: int = 1) -> Tensor:
    """Standard normal, float64 [n, dims]."""
    return torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_calibrated(
    measure: Callable[[int], tuple[float, float]], runs: int, slack: float = 0.1, freedom: float = math.inf
) -> None:
    """Mean squared standard errors are the variance of values, within 4 standard errors of both and `slack`.

    Args:
        measure: value and standard error for a seed.
        runs: how many seeds.
        slack: relative; first-order errors are that of n, not of n - 1, and leave out terms of 1/n.
        freedom: degrees of freedom of each squared standard error.
    """
    values, errors = np.array([measure(seed) for seed in range(runs)]).T
    ratio = np.sqrt(np.square(errors).mean()) / values.std(ddof=1)
    sampling = math.sqrt(1 / (2 * (runs - 1)) + 1 / (2 * freedom * runs))
    assert abs(math.log(ratio)) < 4 * sampling + slack, ratio
