"""How well are factors predicted from codes: from one dimension (SAP), by trees (DCI), linearly (the others)?

Predictors are fitted on the CPU, and return what they say of each point, of which the metrics are means."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import rankdata
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from vaezoo.evaluation.boosting import boost

Array = NDArray[np.float64]
Values = NDArray[np.int64]
Booleans = NDArray[np.bool_]

NEGLIGIBLE = 1e-12  # variances below are those of constants

# --- SAP -------------------------------------------------------------------------------------------------


def predicted_by_each(train: Array, values: Values, test: Array, test_values: Values) -> Booleans:
    """Which test points each code alone predicts right: bool [M, D].

    Kumar et al. 2018: a linear support vector machine for each code, one value against the rest.

    Args:
        train: codes [N, D].
        values: of a factor, at least two different ones, [N].
        test: codes [M, D].
        test_values: [M].
    """
    correct = []
    for x, x_test in zip(train.T, test.T):
        machine = LinearSVC(C=0.01, class_weight="balanced", dual=False, random_state=0)
        correct.append(machine.fit(x[:, None], values).predict(x_test[:, None]) == test_values)
    return np.stack(correct, 1)


def squared_correlations(codes: Array, factor: Array) -> tuple[Array, Array]:
    """Squared correlation of each code with a continuous factor, [D], and each point's influence, [N, D].

    Both 0 where code or factor is constant. codes [N, D], factor [N]."""
    x, y = codes - codes.mean(0), factor - factor.mean()
    variances = np.square(x).mean(0), np.square(y).mean()
    varies = variances[0] * variances[1] > NEGLIGIBLE
    x = x / np.sqrt(np.where(varies, variances[0], 1))
    y = y[:, None] / np.sqrt(np.where(varies, variances[1], 1))
    correlation = (x * y).mean(0) * varies
    influence = 2 * correlation * (x * y - correlation * (np.square(x) + np.square(y)) / 2)
    return np.square(correlation), influence


def separated_attributes(
    train: Array,
    train_factors: Array,
    test: Array,
    test_factors: Array,
    continuous: tuple[bool, ...],
) -> tuple[Array, Array, Array]:
    """How well each code alone predicts each factor (Kumar et al. 2018), and how far the best two are apart.

    For a factor with values it is the test accuracy of a linear support vector machine, one value against the
    rest; for a continuous one, the squared correlation with it in the train codes, 0 if either is constant.

    Args:
        train: codes [N, D], D at least 2.
        train_factors: [N, F].
        test: codes [M, D].
        test_factors: [M, F].
        continuous: which factors are.

    Returns:
        Scores [D, F] in [0, 1], and the influence of each train point [N] and test point [M] on the SAP, the
        mean over factors of the difference of the best two.
    """
    scores = np.zeros((train.shape[1], len(continuous)))
    of_train, of_test = np.zeros(len(train)), np.zeros(len(test))
    for f, is_continuous in enumerate(continuous):
        if is_continuous:
            scores[:, f], influence = squared_correlations(train, train_factors[:, f])
            points = of_train
        else:
            values, test_values = (
                factors[:, f].astype(np.int64) for factors in (train_factors, test_factors)
            )
            influence = predicted_by_each(train, values, test, test_values).astype(np.float64)
            scores[:, f] = influence.mean(0)
            points = of_test
        second, first = np.argsort(scores[:, f])[-2:]
        points += (influence[:, first] - influence[:, second]) / len(continuous)
    return scores, of_train, of_test


# --- DCI -------------------------------------------------------------------------------------------------


def dci_importances(
    train: Array,
    train_factors: Values,
    test: Array,
    test_factors: Values,
    stages: int = 100,
    seed: int = 0,
    threads: int = 1,
) -> tuple[Array, Booleans]:
    """Importance of each code for each factor, and which test points are predicted right.

    Eastwood & Williams 2018, with one gradient-boosted classifier per factor, see `boosting.boost`.

    Returns:
        Importances [D, F], whose columns sum to 1 (to 0 if all codes are constant); correct [M, F].
    """
    importances, correct = [], []
    for f in range(train_factors.shape[1]):
        fitted = boost(train, train_factors[:, f], test, stages=stages, seed=seed + f, threads=threads)
        importances.append(fitted.importances)
        correct.append(fitted.predicted == test_factors[:, f])
    return np.stack(importances, 1), np.stack(correct, 1)


def dci_disentanglement(importances: Array) -> float:
    """1 - entropy of each code's importances over the factors, weighted by the code's share: in [0, 1].

    importances [D, F], F at least 2. If all are 0 nothing is disentangled: 0."""
    return _concentration(importances)


def dci_completeness(importances: Array) -> float:
    """1 - entropy of each factor's importances over the codes, weighted by the factor's share: in [0, 1].

    importances [D, F], D at least 2. If all are 0: 0."""
    return _concentration(importances.T)


def _concentration(rows: Array) -> float:
    total = rows.sum()
    if total == 0:
        return 0.0
    p = rows + 1e-11
    p = p / p.sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1) / np.log(rows.shape[1])
    return float((1 - entropy) @ rows.sum(1) / total)


# --- Linear classifiers ----------------------------------------------------------------------------------


def softmax_regression(x: Array, y: Values, penalty: float, weights: Array, steps: int) -> Array:
    """Multinomial logistic regression by L-BFGS: coefficients, the last ones intercepts, [D + 1, K].

    scikit-learn's loss, start and stopping rule, in a third of its time.

    Args:
        x: [N, D], columns of about unit scale.
        y: 0 to K - 1, [N].
        penalty: on half the sum of squared coefficients, intercepts left out, against the mean loss.
        weights: of the points, of mean 1, [N].
        steps: at most.
    """
    n, dims, classes = len(x), x.shape[1], int(y.max()) + 1
    rows = np.concatenate([x.T, np.ones((1, n))])  # a column for each point: sums over classes run along rows
    share = weights / n
    points = np.arange(n)

    def loss(flat: Array) -> tuple[float, Array]:
        coefficients = flat.reshape(classes, dims + 1)
        p = coefficients @ rows
        p -= p.max(0)
        chosen = p[y, points]
        np.exp(p, out=p)
        total = p.sum(0)
        value = share @ (np.log(total) - chosen)
        p *= share / total
        p[y, points] -= share
        gradient = p @ rows.T
        value += penalty / 2 * np.square(coefficients[:, :-1]).sum()
        gradient[:, :-1] += penalty * coefficients[:, :-1]
        return float(value), gradient.ravel()

    options = {"maxiter": steps, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros(classes * (dims + 1))
    with threadpool_limits(1):  # several threads on matrices this small take four times as long as one
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(classes, dims + 1).T


def log_probabilities(coefficients: Array, x: Array) -> Array:
    """Of the K values, by `softmax_regression`: [N, K] nats."""
    logits = x @ coefficients[:-1] + coefficients[-1]
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def explicitness(train: Array, train_values: Values, test: Array, test_values: Values) -> tuple[float, Array]:
    """Can a linear classifier tell the values of one factor apart? In [0, 1]; chance is 0.5.

    Ridgeway & Mozer 2018. Area under the ROC curve of logistic regression (C = 1) on standardised codes: each
    value against the rest, on the test points, mean over the values that occur in both parts and do not fill
    the test part.

    Args:
        train: codes [N, D].
        train_values: at least two different ones, [N].
        test: codes [M, D].
        test_values: [M].

    Returns:
        The mean area, and each test point's influence on it, [M].
    """
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 0, scale, 1)
    classes, y = np.unique(train_values, return_inverse=True)
    # With two classes scikit-learn penalises the difference of their coefficients, half as large a sum.
    penalty = (2 if len(classes) == 2 else 1) / len(y)
    coefficients = softmax_regression((train - mean) / scale, y, penalty, np.ones(len(y)), steps=1000)
    scores = log_probabilities(coefficients, (test - mean) / scale)
    return mean_area(scores, test_values[:, None] == classes)


def mean_area(scores: Array, positive: Booleans) -> tuple[float, Array]:
    """Mean area under the ROC curves of K scores, and each point's influence on it, [M].

    The influence is that of DeLong et al. 1988: a point's placement among those of the other kind. A column
    whose points are all positive or all negative has no curve and is left out; if all are, the area is NaN.

    Args:
        scores: [M, K].
        positive: [M, K].
    """
    count = positive.sum(0)
    defined = (count > 0) & (count < len(positive))
    scores, positive, count = scores[:, defined], positive[:, defined], count[defined]
    if not len(count):
        return np.nan, np.zeros(len(positive))
    # A point's rank among all, less that among its own kind: how many of the other kind are below it.
    among_positive = rankdata(np.where(positive, scores, np.inf), axis=0)
    among_negative = rankdata(np.where(positive, np.inf, scores), axis=0)
    below = rankdata(scores, axis=0) - np.where(positive, among_positive, among_negative)
    negative = len(positive) - count
    placement = np.where(positive, below / negative, 1 - below / count)
    areas = np.where(positive, placement, 0).sum(0) / count
    share = np.where(positive, count, negative) / len(positive)
    return float(areas.mean()), ((placement - areas) / share).mean(1)


def predictive_information(codes: Array, values: Values) -> Array:
    """Share of a factor's entropy that logistic regression finds in the codes, at each point: [N], mean <= 1.

    InfoE (Hsu et al. 2023) is its mean: predictive V-information over entropy, V the linear classifiers,
    unpenalised, all values weighing the same. As there, on the points that it is fitted to and in at most 100
    steps; they start from decorrelated codes, which changes nothing but how far they get. Without codes the
    fit is uniform, and the entropy the logarithm of the number of values.

    Args:
        codes: [N, D].
        values: at least two different ones, [N].
    """
    centred = codes - codes.mean(0)
    scale = centred.std(0)
    centred = centred / np.where(scale > 0, scale, 1)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    x = left[:, singular > 1e-10 * max(singular[0], 1)] * np.sqrt(len(codes))
    classes, y, counts = np.unique(values, return_inverse=True, return_counts=True)
    weights = len(y) / (len(classes) * counts[y])
    coefficients = softmax_regression(x, y, 0, weights, steps=100)
    surprise = -log_probabilities(coefficients, x)[np.arange(len(y)), y]
    return 1 - surprise / np.log(len(classes))
