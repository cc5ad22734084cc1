from __future__ import annotations

import math

import numpy as np
import pytest
from sampled import assert_calibrated, drawn, noise
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from vaezoo.evaluation.disentanglement import error_of_parts, importances_of_parts
from vaezoo.evaluation.prediction import (
    dci_completeness,
    dci_disentanglement,
    dci_importances,
    explicitness,
    log_probabilities,
    mean_area,
    predictive_information,
    separated_attributes,
    softmax_regression,
    squared_correlations,
)


def standard_error(points: np.ndarray) -> float:
    return float(points.std(ddof=1) / np.sqrt(len(points)))


def test_dci_of_known_importances() -> None:
    copies = np.concatenate([np.eye(5), np.eye(5)])
    assert dci_disentanglement(copies) == pytest.approx(1, abs=1e-8)
    assert dci_completeness(copies) == pytest.approx(1 - math.log(2) / math.log(10), abs=1e-8)
    assert dci_disentanglement(np.ones((4, 3))) == pytest.approx(0, abs=1e-8)
    assert dci_completeness(np.ones((4, 3))) == pytest.approx(0, abs=1e-8)
    assert dci_disentanglement(np.zeros((4, 3))) == dci_completeness(np.zeros((4, 3))) == 0
    # A useless code has no weight; one of three quarters counts three times one of a quarter.
    importances = np.array([[0.75, 0.0], [0.125, 0.125], [0, 0]])
    assert dci_disentanglement(importances) == pytest.approx(0.75, abs=1e-8)


def test_explicitness_is_the_area_under_scikit_learns_curve() -> None:
    factors = drawn(900).numpy()
    x = factors @ noise(3, 4).numpy() + noise(900, 4).numpy()
    scaled = (x - x[:600].mean(0)) / x[:600].std(0)
    y = factors[:, 1]
    probabilities = LogisticRegression(max_iter=1000).fit(scaled[:600], y[:600]).predict_proba(scaled[600:])
    theirs = np.mean([roc_auc_score(y[600:] == value, probabilities[:, value]) for value in range(6)])
    assert explicitness(x[:600], y[:600], x[600:], y[600:])[0] == pytest.approx(theirs, abs=1e-4)


def test_importances_of_mixed_codes() -> None:
    factors = drawn(900, (5, 5)).numpy()
    codes = np.stack([factors[:, 0], factors.sum(1)], 1).astype(float)
    importances, correct = dci_importances(codes[:600], factors[:600], codes[600:], factors[600:], 20)
    assert importances.sum(0) == pytest.approx([1, 1])
    assert importances[0, 0] > 0.95
    assert 0.2 < importances[1, 1] < 0.95
    assert correct.mean(0).min() > 0.9


# Linear classifiers


@pytest.mark.parametrize("values", [2, 6])
def test_softmax_regression_is_that_of_scikit_learn(values: int) -> None:
    y = drawn(600, (values,)).numpy()[:, 0]
    x = y[:, None] * noise(1, 3).numpy() + noise(600, 3).numpy()
    theirs = LogisticRegression(C=0.3, max_iter=1000, tol=1e-6).fit(x, y)
    penalty = (2 if values == 2 else 1) / (0.3 * len(y))
    ours = softmax_regression(x, y, penalty, np.ones(len(y)), 1000)
    np.testing.assert_allclose(np.exp(log_probabilities(ours, x)), theirs.predict_proba(x), atol=2e-3)


def test_area_under_the_curve_with_ties_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    scores = np.round(generator.normal(size=(80, 3)), 1)
    positive = generator.random((80, 3)) < 0.3
    areas = [roc_auc_score(positive[:, k], scores[:, k]) for k in range(3)]
    area, influence = mean_area(scores, positive)
    assert area == pytest.approx(np.mean(areas), abs=1e-12)
    assert influence.mean() == pytest.approx(0, abs=1e-12)


def test_influence_on_the_area_is_the_placement_by_brute_force() -> None:
    """DeLong et al. 1988, pair by pair."""
    generator = np.random.default_rng(1)
    scores, positive = np.round(generator.normal(size=40), 1), generator.random(40) < 0.4
    wins = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    of_positive, of_negative = wins[positive][:, ~positive].mean(1), wins[positive][:, ~positive].mean(0)
    variance = of_positive.var(ddof=1) / positive.sum() + of_negative.var(ddof=1) / (~positive).sum()
    _, influence = mean_area(scores[:, None], positive[:, None])
    assert np.square(influence).sum() / 40**2 == pytest.approx(variance, rel=0.08)  # n for n - 1
    placed = influence[positive] * positive.mean()
    assert placed == pytest.approx(of_positive - of_positive.mean(), abs=1e-12)


def test_columns_of_one_kind_have_no_curve() -> None:
    scores, positive = noise(10, 2).numpy(), np.zeros((10, 2), bool)
    positive[:5, 0] = True
    assert mean_area(scores, positive)[0] == pytest.approx(roc_auc_score(positive[:, 0], scores[:, 0]))
    area, influence = mean_area(scores[:, 1:], positive[:, 1:])
    assert np.isnan(area)
    assert (influence == 0).all()


def test_predictive_information_of_a_binary_symmetric_channel() -> None:
    """A code of two values leaves a logistic classifier free: 1 - H(f|z) / ln 2 from the counts."""
    y = np.repeat([0, 1], 500)
    z = y.copy()
    z[:100], z[500:600] = 1, 0
    entropy = -0.2 * np.log(0.2) - 0.8 * np.log(0.8)
    share = predictive_information(z[:, None].astype(float), y).mean()
    assert share == pytest.approx(1 - entropy / np.log(2), abs=1e-4)


def test_predictive_information_is_that_of_scikit_learn() -> None:
    y = drawn(800, (6,)).numpy()[:, 0]
    x = y[:, None] * noise(1, 3).numpy() + 2 * noise(800, 3).numpy()
    x = np.concatenate([x, 3 * x[:, :1] - x[:, 1:2], np.full((800, 1), 5.0)], 1)  # dependent, and constant
    theirs = LogisticRegression(C=1e9, class_weight="balanced", max_iter=5000, tol=1e-6).fit(x, y)
    loss = log_loss(y, theirs.predict_proba(x))
    assert predictive_information(x, y).mean() == pytest.approx(1 - loss / np.log(6), abs=1e-4)


def test_predictive_information_of_constant_and_of_separable_codes() -> None:
    y = drawn(300, (4,)).numpy()[:, 0]
    assert predictive_information(np.full((300, 2), 0.1), y) == pytest.approx(0, abs=0.02)
    assert predictive_information(np.eye(4)[y], y).mean() > 0.99


# Standard errors


def test_influence_on_squared_correlations_is_that_of_repeated_sampling() -> None:
    def of(seed: int) -> tuple[float, float]:
        x = noise(300, 1, seed).numpy()
        y = x[:, 0] + noise(300, 1, seed + 1000).numpy()[:, 0]
        squared, influence = squared_correlations(x, y)
        return float(squared[0]), standard_error(influence[:, 0])

    assert_calibrated(of, 200)


def test_standard_error_of_sap_is_that_of_repeated_tests() -> None:
    """Of factors with values over test points, of continuous ones over those that it is fitted to."""
    train = drawn(300, (2, 2)).numpy().astype(float)
    x_train = train + 0.5 * noise(300, 2).numpy()

    def discrete(seed: int) -> tuple[float, float]:
        test = drawn(300, (2, 2), seed + 1).numpy().astype(float)
        x_test = test + 0.5 * noise(300, 2, seed + 1000).numpy()
        scores, of_train, of_test = separated_attributes(x_train, train, x_test, test, (False, False))
        assert (of_train == 0).all()
        best = np.sort(scores, 0)
        assert of_test.mean() == pytest.approx((best[-1] - best[-2]).mean())
        return float((best[-1] - best[-2]).mean()), standard_error(of_test)

    def continuous(seed: int) -> tuple[float, float]:
        factors = noise(300, 2, seed).numpy()
        x = factors + factors[:, ::-1] * 0.3 + noise(300, 2, seed + 1000).numpy()
        scores, of_train, of_test = separated_attributes(x, factors, x[:60], factors[:60], (True, True))
        assert (of_test == 0).all()
        best = np.sort(scores, 0)
        return float((best[-1] - best[-2]).mean()), standard_error(of_train)

    assert_calibrated(discrete, 60)
    assert_calibrated(continuous, 100)


def test_standard_error_of_explicitness_is_that_of_repeated_tests() -> None:
    train = drawn(300, (3,)).numpy()[:, 0]
    mixing = noise(1, 2, 5).numpy()
    x_train = train[:, None] * mixing + noise(300, 2).numpy()

    def of(seed: int) -> tuple[float, float]:
        test = drawn(200, (3,), seed + 1).numpy()[:, 0]
        x_test = test[:, None] * mixing + noise(200, 2, seed + 1000).numpy()
        area, influence = explicitness(x_train, train, x_test, test)
        return area, standard_error(influence)

    assert_calibrated(of, 100)


def test_standard_error_of_predictive_information_is_that_of_repeated_sampling() -> None:
    def of(seed: int) -> tuple[float, float]:
        y = drawn(400, (3,), seed).numpy()[:, 0]
        share = predictive_information(y[:, None] + noise(400, 1, seed + 1000).numpy(), y)
        return float(share.mean()), standard_error(share)

    assert_calibrated(of, 100)


def test_standard_errors_of_dci_are_those_of_repeated_sampling() -> None:
    measured = []
    for seed in range(25):
        factors = drawn(400, (3, 4), seed).numpy()
        x = factors @ np.array([[1, 0.3, 0], [0, 0.5, 1]]) + 0.5 * noise(400, 3, seed + 1000).numpy()
        importances, _ = dci_importances(x, factors, x[:0], factors[:0], 3)
        parts = importances_of_parts(x, factors, 3, 0, 1)
        assert parts is not None
        measured.append(
            [
                (score(importances), error_of_parts([score(part) for part in parts]))
                for score in (dci_disentanglement, dci_completeness)
            ]
        )
    for which in range(2):
        assert_calibrated(lambda seed, which=which: measured[seed][which], 25, slack=0.25, freedom=3)


def test_parts_in_which_a_factor_does_not_vary_have_no_importances() -> None:
    factors = np.zeros((100, 1), np.int64)
    factors[0] = 1
    assert importances_of_parts(noise(100, 2).numpy(), factors, 2, 0, 1) is None
