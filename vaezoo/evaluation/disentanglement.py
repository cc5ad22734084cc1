"""Does each factor of variation have a latent dimension of its own?

Definitions are those of Locatello et al. 2019, whose protocol is `PROTOCOLS["locatello2019"]`; "quick" has
smaller counts. Factors are drawn uniformly and independently, and codes are the means of q(z|x)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor

from vaezoo.data import Factor
from vaezoo.errors import VaezooError
from vaezoo.evaluation.boosting import boost
from vaezoo.evaluation.report import Metric, Results, Skipped, average

POINTS = 10_000
BINS = 20
BATCH = 64  # images with a factor in common, for the beta-VAE and FactorVAE scores
ACTIVE = 0.05  # standard deviation from which on the FactorVAE score counts a dimension
MIN_TRAIN, MIN_TEST = 100, 50  # codes below which no predictor is fitted
NO_INFORMATION = 1e-12  # nats; below are rounding errors

METRICS = (
    "mig",
    "sap",
    "dci_disentanglement",
    "dci_completeness",
    "dci_informativeness",
    "beta_vae_score",
    "factor_vae_score",
    "modularity",
    "explicitness",
)


@dataclass(frozen=True)
class Protocol:
    """How many points the metrics are measured on; mutual information always takes `POINTS` codes.

    Attributes:
        name: as in `PROTOCOLS`.
        train: codes that predictors are fitted to.
        test: codes that they are tested on.
        stages: boosting stages of DCI.
        train_batches: batches of 64 images, or pairs of images, to fit the beta-VAE and FactorVAE scores.
        test_batches: batches to test them.
    """

    name: str
    train: int
    test: int
    stages: int
    train_batches: int
    test_batches: int

    def __str__(self) -> str:
        return f"protocol {self.name}"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("quick", 2_000, 1_000, 20, 200, 200),
        Protocol("locatello2019", 10_000, 5_000, 100, 10_000, 5_000),
    )
}
QUICK = PROTOCOLS["quick"]

Array = NDArray[np.float64]
Values = NDArray[np.int64]
Encode = Callable[[Tensor], Tensor]
"""Codes [B, D] of images of given factors, value indices [B, F]."""


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


def information_matrix(codes: Tensor, factors: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Mutual information of each code, in 20 bins, with each factor: nats [D, F].

    Args:
        codes: real numbers, [N, D].
        factors: value indices, long [N, F].
        sizes: number of values of each factor.
    """
    bins = discretize(codes)
    columns = [mutual_information(bins, BINS, factors[:, f], size) for f, size in enumerate(sizes)]
    return torch.stack(columns, 1)


def mutual_information_gap(codes: Tensor, factors: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Gap (I1 - I2) / H of each factor between the two dimensions that know most about it: [F] in [0, 1].

    Its mean over the factors is the MIG (Chen et al. 2018, eq. 6). A factor that does not vary has no entropy
    and gives NaN; leave it out.

    Args:
        codes: real numbers, [N, D], D at least 2.
        factors: value indices, long [N, F].
        sizes: number of values of each factor.
    """
    first, second = information_matrix(codes, factors, sizes).topk(2, dim=0).values
    columns = [factors[:, f : f + 1] for f in range(len(sizes))]
    entropies = [mutual_information(v, size, v[:, 0], size)[0] for v, size in zip(columns, sizes)]
    return (first - second) / torch.stack(entropies)


def modularity(information: Tensor) -> Tensor:
    """1 - (sum of I^2 - max I^2) / (max I^2 (F - 1)) of each code: [D] in [0, 1].

    Ridgeway & Mozer 2018. 1 if the code knows of one factor alone; 0 if it knows as much of every factor, or
    nothing.

    Args:
        information: mutual information of code and factor, [D, F], F at least 2.
    """
    squared = information.square()
    most = squared.amax(1)
    rest = (squared.sum(1) - most) / (most * (information.shape[1] - 1))
    return torch.where(information.amax(1) > NO_INFORMATION, 1 - rest, 0.0)


def separated_attributes(
    train: Array,
    train_factors: NDArray[np.floating] | Values,
    test: Array,
    test_factors: NDArray[np.floating] | Values,
    continuous: tuple[bool, ...],
) -> Array:
    """How well each code alone predicts each factor: [D, F] in [0, 1] (Kumar et al. 2018).

    For a factor with values, the test accuracy of a linear support vector machine, one against the
    rest; for a continuous one, the squared correlation with it in the train codes, 0 if either is constant.

    Args:
        train: codes [N, D].
        train_factors: [N, F].
        test: codes [M, D].
        test_factors: [M, F].
        continuous: which factors are.
    """
    scores = np.zeros((train.shape[1], len(continuous)))
    for d, f in np.ndindex(*scores.shape):
        x, y = train[:, d], train_factors[:, f]
        if continuous[f]:
            variances = x.var() * y.var()
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            scores[d, f] = covariance**2 / variances if variances > 1e-12 else 0.0
        else:
            machine = LinearSVC(C=0.01, class_weight="balanced", dual=False, random_state=0).fit(
                x[:, None], y
            )
            scores[d, f] = (machine.predict(test[:, d, None]) == test_factors[:, f]).mean()
    return scores


def dci_importances(
    train: Array,
    train_factors: Values,
    test: Array,
    test_factors: Values,
    stages: int = 100,
    seed: int = 0,
    threads: int = 1,
) -> tuple[Array, NDArray[np.bool_]]:
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


def explicitness(train: Array, train_values: Values, test: Array, test_values: Values) -> float:
    """Can a linear classifier tell the values of one factor apart? In [0, 1]; chance is 0.5.

    Ridgeway & Mozer 2018. Area under the ROC curve of logistic regression on standardised codes: each value
    against the rest, on the test points, mean over the values that occur in both parts and do not fill the
    test part.

    Args:
        train: codes [N, D].
        train_values: at least two different ones, [N].
        test: codes [M, D].
        test_values: [M].
    """
    scaler = StandardScaler().fit(train)
    classifier = LogisticRegression(max_iter=1000, random_state=0).fit(scaler.transform(train), train_values)
    probabilities = classifier.predict_proba(scaler.transform(test))
    is_value = test_values[:, None] == classifier.classes_
    positive, negative = is_value.sum(0), (~is_value).sum(0)
    ranks = (rankdata(probabilities, axis=0) * is_value).sum(0)
    defined = (positive > 0) & (negative > 0)
    wins = ranks[defined] - positive[defined] * (positive[defined] + 1) / 2
    return float((wins / (positive[defined] * negative[defined])).mean())


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


def measure_disentanglement(
    codes: Tensor,
    factors: Tensor,
    names: tuple[Factor, ...],
    how: str,
    *,
    protocol: Protocol = QUICK,
    encode: Encode | None = None,
    seed: int = 0,
) -> Results:
    """Every metric of `METRICS`, or why there is none.

    Args:
        codes: [N, D]. The first `POINTS` are for mutual information. Predictors are tested on the last
            `protocol.test` (a third at most) and fitted to the first `protocol.train` of the others.
        factors: [N, F].
        names: what the factors are.
        how: says how they were drawn.
        protocol: the counts.
        encode: codes of images of any factors, for the two scores that choose factors; None: there are
            no images but those of `codes`.
        seed: draws those factors, and breaks ties between codes.

    Raises:
        VaezooError: not one row of factors for each code, or not one name for each factor.
    """
    if codes.ndim != 2 or factors.shape != (len(codes), len(names)):
        raise VaezooError(
            f"codes {list(codes.shape)} and factors {list(factors.shape)} do not match: they must be [N, D] "
            f"and [N, {len(names)}], {', '.join(factor.name for factor in names)}"
        )
    bad = int((~codes.isfinite().all(1)).sum())
    if bad:
        return dict.fromkeys(METRICS, Skipped(f"{bad} of {len(codes)} codes are not finite"))
    results: Results = _by_information(codes[:POINTS], factors[:POINTS], names, how)
    held = min(protocol.test, len(codes) // 3)
    train, test = slice(0, min(protocol.train, len(codes) - held)), slice(len(codes) - held, None)
    results |= _by_prediction(codes, factors, train, test, names, how, protocol, seed)
    results |= _by_intervention(codes[:POINTS], names, protocol, encode, seed)
    return {name: results[name] for name in METRICS}


def _usable(factors: Tensor, names: tuple[Factor, ...]) -> tuple[list[int], list[int]]:
    """Factors that vary: those with values, and the continuous ones."""
    varies = (factors.amin(0) < factors.amax(0)).tolist() if len(factors) else [False] * len(names)
    varying = [i for i in range(len(names)) if varies[i]]
    return [i for i in varying if names[i].size > 0], [i for i in varying if names[i].size == 0]


def _note(used: list[int], names: tuple[Factor, ...], *parts: str) -> str:
    """The parts, and which factors were left out."""
    left_out = ", ".join(names[i].name for i in range(len(names)) if i not in used)
    return "; ".join([*parts, *([f"without {left_out} (continuous, or of one value)"] if left_out else [])])


NO_FACTOR = Skipped("no discrete factor varies")
ONE_FACTOR = Skipped("it compares factors, and only one discrete factor varies")
ONE_CODE = Skipped("the gap is between two dimensions, and the latent has one")


def _by_information(codes: Tensor, factors: Tensor, names: tuple[Factor, ...], how: str) -> Results:
    """MIG and modularity."""
    used, _ = _usable(factors, names)
    if not used:
        return {"mig": NO_FACTOR, "modularity": NO_FACTOR}
    chosen = [names[i] for i in used]
    values, sizes = factors[:, used].long(), tuple(factor.size for factor in chosen)
    results: Results = {"mig": ONE_CODE, "modularity": ONE_FACTOR}
    if codes.shape[1] > 1:
        gaps = mutual_information_gap(codes, values, sizes).tolist()
        each = ", ".join(f"{factor.name} {gap:.3f}" for factor, gap in zip(chosen, gaps))
        mig = sum(gaps) / len(gaps)
        results["mig"] = Metric(mig, len(codes), "", None, "higher", _note(used, names, each, how))
    if len(used) > 1:
        modular = modularity(information_matrix(codes, values, sizes)).mean().item()
        results["modularity"] = Metric(modular, len(codes), "", None, "higher", _note(used, names, how))
    return results


def _by_prediction(
    codes: Tensor,
    factors: Tensor,
    train: slice,
    test: slice,
    names: tuple[Factor, ...],
    how: str,
    protocol: Protocol,
    seed: int,
) -> Results:
    """SAP, DCI and explicitness."""
    points = codes.double().cpu().numpy()
    x_train, x_test = points[train], points[test]
    predicted = ("sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "explicitness")
    if len(x_train) < MIN_TRAIN or len(x_test) < MIN_TEST:
        reason = (
            f"predictors need at least {MIN_TRAIN} codes to be fitted to and {MIN_TEST} to be tested on, "
            f"and there are {len(x_train)} and {len(x_test)}"
        )
        return dict.fromkeys(predicted, Skipped(reason))
    results: Results = {}
    used, continuous = _usable(factors[train], names)
    dims, n = points.shape[1], len(x_test)
    counts = f"{protocol}, fitted to {len(x_train)} codes"

    either = sorted(used + continuous)
    if dims < 2:
        results["sap"] = ONE_CODE
    elif not either:
        results["sap"] = Skipped("no factor varies")
    else:
        values = factors[:, either].cpu().numpy()
        kinds = tuple(i in continuous for i in either)
        alone = np.sort(separated_attributes(x_train, values[train], x_test, values[test], kinds), axis=0)
        sap = float((alone[-1] - alone[-2]).mean())
        results["sap"] = Metric(sap, n, "", None, "higher", _note(either, names, counts, how))

    if not used:
        return results | dict.fromkeys(predicted[1:], NO_FACTOR)
    note = _note(used, names, counts, how)
    values = factors[:, used].long().cpu().numpy()
    v_train, v_test = values[train], values[test]
    threads = torch.get_num_threads()
    importances, correct = dci_importances(x_train, v_train, x_test, v_test, protocol.stages, seed, threads)
    scores = {"dci_disentanglement": dci_disentanglement, "dci_completeness": dci_completeness}
    undefined = {
        "dci_disentanglement": ONE_FACTOR if len(used) < 2 else None,
        "dci_completeness": Skipped("it compares dimensions, and the latent has one") if dims < 2 else None,
    }
    for name, score in scores.items():
        results[name] = undefined[name] or Metric(score(importances), len(x_train), "", None, "higher", note)
    results["dci_informativeness"] = average(torch.from_numpy(correct.mean(1)), "", "higher", note)

    areas = [explicitness(x_train, v_train[:, f], x_test, v_test[:, f]) for f in range(len(used))]
    results["explicitness"] = Metric(sum(areas) / len(areas), n, "", None, "higher", note)
    return results


def _by_intervention(
    codes: Tensor,
    names: tuple[Factor, ...],
    protocol: Protocol,
    encode: Encode | None,
    seed: int,
) -> Results:
    """The beta-VAE and FactorVAE scores, of images whose factors are chosen here."""
    both = ("beta_vae_score", "factor_vae_score")
    if encode is None:
        reason = "it needs images of chosen factors, and this data cannot render them"
        return dict.fromkeys(both, Skipped(reason))
    used = tuple(i for i, factor in enumerate(names) if factor.size > 1)
    if len(used) < 2:
        return dict.fromkeys(both, ONE_FACTOR if used else NO_FACTOR)
    sizes = tuple(factor.size for factor in names)
    draws = torch.Generator().manual_seed(seed)
    counts = (protocol.train_batches, protocol.test_batches)
    note = f"{protocol}, fitted to {counts[0]} batches of {BATCH}"

    results: Results = {}
    pairs = [shared_factor_differences(encode, sizes, used, count, draws) for count in counts]
    if all(differences.isfinite().all() for differences, _ in pairs):
        arrays = [array.cpu().numpy() for pair in pairs for array in pair]
        correct = torch.from_numpy(beta_vae_score(*arrays))
        results["beta_vae_score"] = average(correct, "", "higher", f"{note} pairs")
    else:
        results["beta_vae_score"] = Skipped("some codes are not finite")

    total = codes.double().var(0)
    (variances, shared), (test_variances, test_shared) = (
        fixed_factor_variances(encode, sizes, used, count, draws) for count in counts
    )
    if variances.isfinite().all() and test_variances.isfinite().all():
        votes = factor_vae_score(variances, shared, test_variances, test_shared, total, len(used))
        active = int((total.sqrt() >= ACTIVE).sum())
        kept = f"{active} of {len(total)} dimensions kept"
        results["factor_vae_score"] = average(votes, "", "higher", f"{note} images; {kept}")
    else:
        results["factor_vae_score"] = Skipped("some codes are not finite")
    return results
