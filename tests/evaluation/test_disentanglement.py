from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

from vaezoo.data import Factor
from vaezoo.evaluation.disentanglement import (
    discretize,
    measure_disentanglement,
    mutual_information,
    mutual_information_gap,
)
from vaezoo.evaluation.report import Metric, Skipped

SIZES = (3, 6, 10)


def drawn(n: int = 10_000, sizes: tuple[int, ...] = SIZES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(size, (n,), generator=generator) for size in sizes], 1)


def reference_mig(codes: Tensor, factors: Tensor) -> float:
    """disentanglement_lib's, with numpy and scikit-learn."""
    binned = np.stack([np.digitize(c, np.histogram(c, 20)[1][:-1]) for c in codes.numpy().T])
    gaps = []
    for values in factors.numpy().T:
        information = sorted(mutual_info_score(values, c) for c in binned)
        gaps.append((information[-1] - information[-2]) / mutual_info_score(values, values))
    return float(np.mean(gaps))


def test_bins_are_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(2000, 4, dtype=torch.float64, generator=generator) * torch.tensor([1, 1e-3, 50, 0.0])
    for ours, column in zip(discretize(codes).T, codes.numpy().T):
        theirs = np.digitize(column, np.histogram(column, 20)[1][:-1])
        if np.ptp(column) > 0:
            np.testing.assert_array_equal(ours.numpy(), theirs - 1)
        else:
            assert len(set(ours.tolist())) == len(set(theirs)) == 1


def test_mutual_information_is_that_of_scikit_learn() -> None:
    a, b = drawn(500, (4, 7, 1)), drawn(500, (5,))[:, 0]
    a[:, 1] = (a[:, 1] + b) % 7 // 3
    ours = mutual_information(a, 7, b, 5)
    theirs = [mutual_info_score(column, b) for column in a.T.numpy()]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-10)


def test_mig_is_that_of_the_reference() -> None:
    factors = drawn()
    noise = torch.randn(len(factors), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    codes = (
        noise
        + factors.double() @ torch.tensor([[1.0, 0, 0.5, 0, 2], [0, 1, 1, 0, 0], [0.3, 0, 0, 0, 1]]).double()
    )
    gaps = mutual_information_gap(codes, factors, SIZES)
    assert gaps.mean().item() == pytest.approx(reference_mig(codes, factors), abs=1e-9)


def test_codes_that_are_the_factors_have_a_gap_of_one_and_copies_none() -> None:
    factors = drawn()
    codes = factors.double()
    assert mutual_information_gap(codes, factors, SIZES).mean() >= 0.9
    twice = torch.cat([codes, codes], 1)
    assert mutual_information_gap(twice, factors, SIZES).mean() <= 0.1


def test_a_rotation_by_45_degrees_closes_the_gap() -> None:
    factors = drawn(sizes=(10, 10))
    rotation = torch.tensor([[1.0, -1], [1, 1]], dtype=torch.float64) / math.sqrt(2)
    straight = mutual_information_gap(factors.double(), factors, (10, 10)).mean()
    turned = mutual_information_gap(factors.double() @ rotation, factors, (10, 10)).mean()
    assert straight > 0.9
    assert turned < 0.05


def test_factors_and_codes_that_do_not_vary() -> None:
    factors = drawn()
    factors[:, 1] = 4
    codes = torch.cat([factors.double(), torch.ones(len(factors), 1).double()], 1)
    kinds = (Factor("a", 3, "categorical"), Factor("b", 6, "ordinal"), Factor("c", 10, "ordinal"))
    mig = measure_disentanglement(codes, factors, kinds, "somehow")["mig"]
    assert isinstance(mig, Metric)
    assert mig.value >= 0.9
    assert "without b" in mig.note
    constant = measure_disentanglement(codes, torch.zeros_like(factors), kinds, "somehow")["mig"]
    assert isinstance(constant, Skipped)
    assert isinstance(measure_disentanglement(codes[:, :1], factors, kinds, "")["mig"], Skipped)


def test_continuous_factors_are_left_out_and_named() -> None:
    factors = drawn().float()
    factors[:, 2] += torch.rand(len(factors))
    kinds = (Factor("a", 3, "categorical"), Factor("b", 6, "ordinal"), Factor("c", 0, "continuous"))
    mig = measure_disentanglement(factors, factors, kinds, "")["mig"]
    assert isinstance(mig, Metric)
    assert mig.value >= 0.9
    assert "without c" in mig.note
