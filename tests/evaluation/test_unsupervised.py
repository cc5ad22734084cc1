from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sampled import assert_calibrated, noise
from sklearn.metrics import mutual_info_score
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaezoo.evaluation.frechet import frechet_distance
from vaezoo.evaluation.information import discretize
from vaezoo.evaluation.report import Metric, Results, Skipped
from vaezoo.evaluation.unsupervised import (
    UNSUPERVISED,
    covariance_score,
    gaussian_total_correlation,
    gaussian_wasserstein_correlation,
    gaussian_wasserstein_correlation_norm,
    measure_unsupervised,
    pairwise_information,
)

TC, WASSERSTEIN, NORM, INFORMATION = UNSUPERVISED


def correlated(rho: float) -> Tensor:
    return torch.tensor([[1.0, rho], [rho, 1]], dtype=torch.float64)


def value(results: Results, name: str) -> float:
    result = results[name]
    assert isinstance(result, Metric), result
    return result.value


def reason(results: Results, name: str) -> str:
    result = results[name]
    assert isinstance(result, Skipped), result
    return result.reason


def test_total_correlation_of_two_dimensions() -> None:
    for rho in (0.0, 0.5, -0.9):
        expected = -math.log(1 - rho**2) / 2
        assert gaussian_total_correlation(correlated(rho)).item() == pytest.approx(expected, abs=1e-12)


def test_total_correlation_is_the_kl_to_the_product_of_marginals() -> None:
    root = noise(5, 5)
    covariance = root @ root.T + 0.1 * torch.eye(5)
    zero = torch.zeros(5, dtype=torch.float64)
    product = MultivariateNormal(zero, covariance.diagonal().diag())
    expected = kl_divergence(MultivariateNormal(zero, covariance), product).item()
    assert gaussian_total_correlation(covariance).item() == pytest.approx(expected)


def test_wasserstein_correlation_of_two_dimensions() -> None:
    """Equal variances: 4 - 2 (sqrt(1 + rho) + sqrt(1 - rho)), at rank one too."""
    for rho in (0.0, 0.5, -0.9, 1.0):
        expected = 4 - 2 * (math.sqrt(1 + rho) + math.sqrt(1 - rho))
        assert gaussian_wasserstein_correlation(correlated(rho)).item() == pytest.approx(expected, abs=1e-7)
        norm = gaussian_wasserstein_correlation_norm(9 * correlated(rho)).item()
        assert norm == pytest.approx(expected / 2, abs=1e-7)


def test_wasserstein_correlation_is_the_frechet_distance_to_the_product_of_marginals() -> None:
    root = noise(5, 5)
    covariance, zero = root @ root.T, torch.zeros(5, dtype=torch.float64)
    expected = frechet_distance(zero, covariance, zero, covariance.diagonal().diag())
    assert gaussian_wasserstein_correlation(covariance).item() == pytest.approx(expected.item())


def test_pairwise_information_is_the_mean_of_scikit_learns() -> None:
    codes = noise(500, 4) @ noise(4, 4, seed=2)
    bins = discretize(codes).T.numpy()
    theirs = [mutual_info_score(bins[i], bins[j]) for i in range(4) for j in range(i)]
    assert pairwise_information(codes).mean().item() == pytest.approx(np.mean(theirs), abs=1e-12)


@pytest.mark.parametrize(
    "score",
    [gaussian_total_correlation, gaussian_wasserstein_correlation, gaussian_wasserstein_correlation_norm],
)
def test_standard_errors_are_those_of_repeated_sampling(score: Callable[[Tensor], Tensor]) -> None:
    mixing = noise(3, 3, seed=4)

    def of(seed: int) -> tuple[float, float]:
        codes = noise(500, 3, seed) @ mixing
        measured, error = covariance_score(codes - codes.mean(0), score)
        return measured.item(), error.item()

    assert_calibrated(of, 150)


def test_standard_error_of_pairwise_information_is_that_of_repeated_sampling() -> None:
    mixing = noise(3, 3, seed=4)

    def of(seed: int) -> tuple[float, float]:
        # Bounded codes: their bins are the same in every sample.
        points = pairwise_information(torch.erf(noise(800, 3, seed) @ mixing))
        return points.mean().item(), points.std().item() / math.sqrt(800)

    assert_calibrated(of, 100)


def test_independent_dimensions_have_none_and_scale_does_not_matter() -> None:
    codes = noise(10_000, 3)
    results = measure_unsupervised(codes, "")
    assert value(results, TC) < 0.002
    assert value(results, NORM) < 0.002
    assert value(results, INFORMATION) == pytest.approx(19**2 / 20_000, abs=0.01)  # the bias of 20 bins
    scaled = measure_unsupervised(codes * torch.tensor([1e-4, 1, 1e3]), "")
    assert value(scaled, TC) == pytest.approx(value(results, TC), rel=1e-6)


# Bad input


def test_constant_dimensions_are_independent_of_all() -> None:
    codes = noise(1000, 3) @ noise(3, 3, seed=2)
    results = measure_unsupervised(codes, "")
    more = measure_unsupervised(torch.cat([codes, torch.full((1000, 2), 0.1)], 1), "")
    for name in (TC, WASSERSTEIN, NORM):
        assert value(more, name) == pytest.approx(value(results, name))
    assert value(more, INFORMATION) == pytest.approx(value(results, INFORMATION) * 3 / 10)
    dead = measure_unsupervised(torch.full((50, 3), 0.1), "")
    for name in (TC, WASSERSTEIN, NORM):
        assert reason(dead, name) == "all codes are constant"
    assert value(dead, INFORMATION) == pytest.approx(0, abs=1e-12)


def test_copies_have_an_infinite_total_correlation() -> None:
    codes = noise(1000, 2).float()
    results = measure_unsupervised(torch.cat([codes, -3 * codes[:, :1]], 1), "")
    assert "infinite" in reason(results, TC)
    for name in (WASSERSTEIN, NORM, INFORMATION):
        result = results[name]
        assert isinstance(result, Metric)
        assert result.value > 0
        assert result.se is not None
        assert math.isfinite(result.se)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.tensor([[1.0, math.nan], [0, 1], [math.inf, 0]]), "2 of 3 codes are not finite"),
        (torch.ones(1, 3), "at least 2 codes"),
        (noise(50, 1), "the latent has one"),
        (noise(3, 4), "3 codes have no covariance matrix of full rank in 4 dimensions"),
    ],
)
def test_codes_that_have_no_total_correlation(codes: Tensor, message: str) -> None:
    assert message in reason(measure_unsupervised(codes, ""), TC)
