from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from torch import Tensor

from vaezoo.evaluation.frechet import (
    frechet,
    frechet_distance,
    frechet_infinity,
    measure_frechet,
    moments,
)
from vaezoo.evaluation.report import Metric, Skipped


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, dtype=torch.float64, generator=generator)


def test_moments_are_the_mean_and_the_covariance() -> None:
    x = normal(5000, 6, 0, mean=100)  # more than one block
    mean, covariance = moments(x.float())
    torch.testing.assert_close(mean, x.float().double().mean(0))
    torch.testing.assert_close(covariance, torch.cov(x.float().double().T), rtol=1e-9, atol=1e-9)


def test_frechet_distance_of_known_gaussians() -> None:
    eye, mean = torch.eye(16).double(), torch.full((16,), 0.3, dtype=torch.float64)
    zero = torch.zeros(16).double()
    assert frechet_distance(zero, eye, mean, 1.44 * eye).item() == pytest.approx(1.44 + 16 * 0.04, abs=1e-9)
    assert frechet_distance(mean, eye, mean, eye).item() == pytest.approx(0, abs=1e-9)
    a, b = normal(40, 5, 1), normal(40, 5, 2, scale=2)
    there, back = frechet_distance(*moments(a), *moments(b)), frechet_distance(*moments(b), *moments(a))
    assert there.item() == pytest.approx(back.item(), abs=1e-9)
    (m1, c1), (m2, c2) = moments(a), moments(b)
    cross = scipy.linalg.sqrtm((c1 @ c2).numpy()).real.trace()
    expected = (m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross
    assert there.item() == pytest.approx(expected.item(), abs=1e-8)


def test_frechet_distance_of_singular_covariances() -> None:
    """Two lines at an angle: tr (C1 C2)^1/2 = |cos|; two that are orthogonal do not meet."""
    zero = torch.zeros(3).double()
    for angle in (0.0, 0.7, math.pi / 2):
        u, v = (
            torch.tensor([1.0, 0, 0]).double(),
            torch.tensor([math.cos(angle), math.sin(angle), 0]).double(),
        )
        distance = frechet_distance(zero, torch.outer(u, u), zero, torch.outer(v, v))
        assert distance.item() == pytest.approx(2 - 2 * abs(math.cos(angle)), abs=1e-7)
    few = normal(5, 20, 0)  # rank 4
    assert frechet_distance(*moments(few), *moments(few)).item() == pytest.approx(0, abs=1e-6)
    distance, variance = frechet(few, normal(5, 20, 1))
    assert distance.isfinite()
    assert variance.isfinite()


def test_distance_with_its_variance_is_the_distance() -> None:
    for n, d in ((200, 8), (6, 20), (300, 1)):
        a, b = normal(n, d, 0), normal(n, d, 1, mean=0.5, scale=1.5)
        assert frechet(a, b)[0].item() == pytest.approx(
            frechet_distance(*moments(a), *moments(b)).item(), rel=1e-6
        )


def test_frechet_distance_is_biased_by_the_number_of_samples_and_the_extrapolation_is_not() -> None:
    """Exact 2.08 at d = 16 reads 2.43, 2.19 and 2.11 at n = 500, 2000 and 8000."""
    draws = torch.Generator().manual_seed(0)
    for n, expected in ((500, 2.43), (2000, 2.19), (8000, 2.11)):
        plain, extrapolated = [], []
        for s in range(40):
            a, b = normal(n, 16, s), normal(n, 16, 1000 + s, mean=0.3, scale=1.2)
            plain.append(frechet_distance(*moments(a), *moments(b)))
            extrapolated.append(frechet_infinity(a, b, plain[-1], draws))
        for values, truth in ((plain, expected), (extrapolated, 2.08)):
            seen = torch.stack(values)
            assert abs(seen.mean().item() - truth) < 4 * seen.std().item() / math.sqrt(40) + 0.005


def test_extrapolation_removes_the_bias_of_both_sets() -> None:
    """Of one distribution the distance is 0, whichever set is the smaller; no estimate without bias can be
    positive always."""
    draws = torch.Generator().manual_seed(0)
    for n, m in ((150, 600), (600, 150)):
        runs = []
        for s in range(60):
            a, b = normal(n, 8, s), normal(m, 8, 1000 + s)
            runs.append(frechet_infinity(a, b, frechet_distance(*moments(a), *moments(b)), draws))
        values = torch.stack(runs)
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(60)
        assert 0.2 < (values < 0).double().mean() < 0.8


@pytest.mark.parametrize(("mean", "scale"), [(0.3, 1.2), (0.0, 1.0)])
def test_standard_errors_are_those_of_repeated_sampling(mean: float, scale: float) -> None:
    """Of the extrapolation everywhere; of the plain distance it is sqrt(2) too large where the truth is 0."""
    draws = torch.Generator().manual_seed(0)
    plain, extrapolated, variances = [], [], []
    for s in range(300):
        a, b = normal(400, 6, s), normal(300, 6, 1000 + s, mean, scale)
        distance, variance = frechet(a, b)
        plain.append(distance)
        variances.append(variance)
        extrapolated.append(frechet_infinity(a, b, distance, draws))
    predicted = torch.stack(variances).mean().sqrt().item()
    # 300 runs give a deviation within 4%.
    assert predicted == pytest.approx(torch.stack(extrapolated).std().item(), rel=0.15)
    factor = 1 if mean else math.sqrt(2)
    assert predicted / factor == pytest.approx(torch.stack(plain).std().item(), rel=0.15)


def test_singular_covariances_are_named_and_not_extrapolated() -> None:
    draws = torch.Generator().manual_seed(0)
    few = measure_frechet("fid", normal(15, 20, 0), normal(15, 20, 1), generator=draws)
    assert isinstance(few["fid"], Metric)
    assert "15 images have no more than 20 features" in few["fid"].note
    assert isinstance(few["fid_infinity"], Skipped)
    assert "half of 15" in few["fid_infinity"].reason
    enough = measure_frechet("fid", normal(42, 20, 0), normal(42, 20, 1), generator=draws)
    assert isinstance(enough["fid_infinity"], Metric)
    assert isinstance(enough["fid"], Metric)
    assert "singular" not in enough["fid"].note
    one = measure_frechet("fid", normal(1, 3, 0), normal(1, 3, 1), generator=draws)
    assert all(isinstance(result, Skipped) and "at least 2" in result.reason for result in one.values())


def test_constant_and_rank_deficient_features_have_the_distance_that_their_moments_say() -> None:
    zeros, threes = torch.zeros(50, 4), torch.full((50, 4), 3.0)
    assert [v.item() for v in frechet(zeros, threes)] == [36, 0]
    line = normal(200, 1, 0) * torch.tensor([1.0, 2.0, 2.0])  # all variance along one direction
    spread = line.var(0).sum()
    distance, variance = frechet(line, 3 * line)  # standard deviations s and 3 s
    mean = 4 * line.mean(0).square().sum()
    assert distance.item() == pytest.approx((4 * spread + mean).item(), rel=1e-6)
    assert variance.isfinite()
