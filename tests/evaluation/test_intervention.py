from __future__ import annotations

import numpy as np
import pytest
import torch
from sampled import SIZES, assert_calibrated, drawn, noise
from torch import Tensor

from vaezoo.evaluation.disentanglement import error_of_parts
from vaezoo.evaluation.information import BINS, discretize
from vaezoo.evaluation.intervention import (
    factor_vae_score,
    fixed_factor_variances,
    interventional_robustness,
    shared_factor_differences,
)


def test_batches_share_the_factor_that_they_say() -> None:
    draws = torch.Generator().manual_seed(0)
    variances, shared = fixed_factor_variances(lambda rows: rows.double(), SIZES, (0, 2), 70, draws)
    fixed = torch.tensor([0, 2])[shared]
    assert set(shared.tolist()) == {0, 1}
    assert (variances == 0).nonzero().tolist() == [[i, f] for i, f in enumerate(fixed.tolist())]
    whole = torch.tensor([(size**2 - 1) / 12 for size in SIZES], dtype=torch.float64)  # of a uniform draw
    free = torch.stack([variances[fixed != f][:, f].mean() for f in (0, 2)])
    assert free.tolist() == pytest.approx(whole[[0, 2]].tolist(), rel=0.1)
    differences, shared = shared_factor_differences(lambda rows: rows.double(), SIZES, (0, 2), 70, draws)
    fixed = torch.tensor([0, 2])[shared]
    assert (differences == 0).nonzero().tolist() == [[i, f] for i, f in enumerate(fixed.tolist())]
    mean = [(size**2 - 1) / (3 * size) for size in SIZES]
    assert differences[:, 1].mean().item() == pytest.approx(mean[1], rel=0.05)


def test_the_majority_names_the_factor_of_a_dimension() -> None:
    total = torch.tensor([1.0, 4.0])
    votes = torch.tensor([[0.1, 3.9], [0.1, 3.9], [0.1, 3.9], [0.9, 0.1]])
    shared = torch.tensor([1, 1, 0, 0])
    # The second dimension has the greater variance, but the smaller one for what it has overall.
    test = torch.tensor([[0.5, 3.0], [0.5, 1.0], [0.5, 1.0]])
    assert factor_vae_score(votes, shared, test, torch.tensor([1, 0, 1]), total, 2).tolist() == [
        True,
        True,
        False,
    ]


# IRS


def reference_irs(codes: np.ndarray, factors: np.ndarray) -> float:
    """By its definition, value by value."""
    greatest = np.abs(codes - codes.mean(0)).max(0)
    matrix = np.zeros((codes.shape[1], factors.shape[1]))
    for f, column in enumerate(factors.T):
        of_values = []
        for value in np.unique(column):
            part = codes[column == value]
            of_values.append(np.quantile(np.abs(part - part.mean(0)), 0.99, axis=0))
        matrix[:, f] = 1 - np.mean(of_values, axis=0) / greatest
    return float(np.average(matrix.max(1), weights=greatest))


def irs(codes: Tensor, factors: Tensor) -> float:
    return interventional_robustness(codes, discretize(factors), BINS).item()


def test_irs_is_its_definition() -> None:
    factors = drawn(700, (3, 6, 50))
    factors[factors == 4] = 5  # a value that does not occur
    codes = factors.double() @ noise(3, 4) + noise(700, 4)
    bins = discretize(factors)
    assert irs(codes, factors) == pytest.approx(reference_irs(codes.numpy(), bins.numpy()), abs=1e-12)


def test_irs_of_the_factors_of_copies_and_of_constants() -> None:
    factors = drawn(2000)
    codes = factors.double()
    assert irs(codes, factors) == pytest.approx(1, abs=1e-12)
    assert irs(codes.repeat(1, 2), factors) == pytest.approx(1, abs=1e-12)
    still = torch.cat([codes, torch.full((2000, 1), 0.1, dtype=torch.float64)], 1)
    assert irs(still, factors) == pytest.approx(1, abs=1e-9)
    assert irs(torch.full((2000, 2), 0.1), factors) == 0


def test_irs_of_a_sum_of_two_factors() -> None:
    """z = a + b, each uniform on 0, ..., 10: holding one leaves ±5 of ±10."""
    factors = drawn(20_000, (11, 11))
    assert irs(factors.sum(1, keepdim=True).double(), factors) == pytest.approx(0.5, abs=0.01)


def test_a_dimension_weighs_in_irs_as_far_as_it_goes() -> None:
    factors = drawn(20_000, (11, 11))
    codes = torch.stack([3 * factors[:, 0], factors.sum(1)], 1).double()
    assert irs(codes, factors) == pytest.approx((15 * 1 + 10 * 0.5) / 25, abs=0.01)


def test_standard_error_from_parts_is_that_of_repeated_sampling() -> None:
    def of(seed: int) -> tuple[float, float]:
        factors = drawn(1200, seed=seed)
        codes = factors.double() @ noise(3, 4) + noise(1200, 4, seed=seed + 1000)
        parts = [irs(codes[part::4], factors[part::4]) for part in range(4)]
        return irs(codes, factors), error_of_parts(parts)

    assert_calibrated(of, 80, slack=0.25, freedom=3)


def test_error_of_parts_of_a_mean() -> None:
    def of(seed: int) -> tuple[float, float]:
        x = noise(400, 1, seed)
        return x.mean().item(), error_of_parts([x[part::4].mean().item() for part in range(4)])

    assert_calibrated(of, 200, freedom=3)
