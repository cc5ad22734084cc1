"""Does each factor of variation have a latent dimension of its own?

Definitions are those of Locatello et al. 2019, whose protocol is `PROTOCOLS["locatello2019"]`; "quick" has
smaller counts. Factors are drawn uniformly and independently, and codes are the means of q(z|x). Each kind of
metric has a file: information.py, prediction.py, intervention.py, and unsupervised.py for those that need no
factors. Here they are measured, with their standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vaezoo.data import Factor
from vaezoo.errors import VaezooError
from vaezoo.evaluation.information import (
    BINS,
    NEIGHBOURS,
    Score,
    active_by_range,
    binned_information,
    discretize,
    info_compactness,
    info_modularity,
    modularity,
    mutual_information_gap,
    neighbour_information,
    without_ties,
)
from vaezoo.evaluation.intervention import (
    ACTIVE,
    BATCH,
    Encode,
    beta_vae_score,
    factor_vae_score,
    fixed_factor_variances,
    interventional_robustness,
    shared_factor_differences,
)
from vaezoo.evaluation.prediction import (
    Array,
    Values,
    dci_completeness,
    dci_disentanglement,
    dci_importances,
    explicitness,
    predictive_information,
    separated_attributes,
)
from vaezoo.evaluation.report import Detail, Metric, Results, Skipped, average
from vaezoo.evaluation.unsupervised import UNSUPERVISED, measure_unsupervised
from vaezoo.random import derive, generator

POINTS = 10_000
MIN_TRAIN, MIN_TEST = 100, 50  # codes below which no predictor is fitted
DRAWS = 200  # of the bootstrap of InfoM and InfoC
PARTS = 4  # disjoint parts of the codes, for standard errors of metrics that have no gradient

OF_FACTORS = (
    "mig",
    "sap",
    "dci_disentanglement",
    "dci_completeness",
    "dci_informativeness",
    "beta_vae_score",
    "factor_vae_score",
    "modularity",
    "explicitness",
    "irs",
    "infom",
    "infoe",
    "infoc",
)
METRICS = OF_FACTORS + UNSUPERVISED


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
    """Every metric of `METRICS`, or why there is none, and the details "mutual_information" and
    "dci_importances" [dimension][factor] and "mig_factors" [factor] where they were measured.

    Args:
        codes: [N, D]. The first `POINTS` are for mutual information, covariances and IRS. Predictors are
            tested on the last `protocol.test` (a third at most) and fitted to the first `protocol.train` of
            the others.
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
    first = codes[:POINTS]
    held = min(protocol.test, len(codes) // 3)
    train, test = slice(0, min(protocol.train, len(codes) - held)), slice(len(codes) - held, None)
    results = _by_information(first, factors[:POINTS], names, how, seed)
    results |= _by_prediction(codes, factors, train, test, names, how, protocol, seed)
    results |= _by_chosen_factors(first, names, protocol, encode, seed)
    results["irs"] = _irs(first, factors[:POINTS], names, how)
    results |= measure_unsupervised(first, how)
    return {name: results.pop(name) for name in METRICS} | results


def _usable(factors: Tensor, names: tuple[Factor, ...]) -> tuple[list[int], list[int]]:
    """Factors that vary: those with values, and the continuous ones."""
    varies = (factors.amin(0) < factors.amax(0)).tolist() if len(factors) else [False] * len(names)
    varying = [i for i in range(len(names)) if varies[i]]
    return [i for i in varying if names[i].size > 0], [i for i in varying if names[i].size == 0]


def _note(used: list[int], names: tuple[Factor, ...], *parts: str) -> str:
    """The parts, and which factors were left out."""
    left_out = ", ".join(names[i].name for i in range(len(names)) if i not in used)
    return "; ".join([*parts, *([f"without {left_out} (continuous, or of one value)"] if left_out else [])])


def _parts(n: int) -> list[slice]:
    """Every fourth of n points, from the first, second, third and fourth on."""
    return [slice(start, n, PARTS) for start in range(PARTS)]


def error_of_parts(scores: list[float]) -> float:
    """Standard error of a score of all points, from the scores of equal, disjoint parts of the points.

    Those vary sqrt(parts) times as much (subsampling, Politis & Romano 1994)."""
    return float(np.std(scores, ddof=1) / np.sqrt(len(scores)))


NO_FACTOR = Skipped("no discrete factor varies")
ONE_FACTOR = Skipped("it compares factors, and only one discrete factor varies")
ONE_CODE = Skipped("the gap is between two dimensions, and the latent has one")
ONE_DIMENSION = Skipped("it compares dimensions, and the latent has one")
BY_DELTA = "se by the delta method"
BY_BOOTSTRAP = f"se by the multiplier bootstrap, {DRAWS} draws"
BY_PARTS = f"se from {PARTS} disjoint parts of the codes, with {PARTS - 1} degrees of freedom"


def _by_information(
    codes: Tensor, factors: Tensor, names: tuple[Factor, ...], how: str, seed: int
) -> Results:
    """MIG, modularity, InfoM and InfoC."""
    used, _ = _usable(factors, names)
    if not used:
        return dict.fromkeys(("mig", "modularity", "infom", "infoc"), NO_FACTOR)
    n, dims = codes.shape
    chosen = [names[i] for i in used]
    labels = tuple(factor.name for factor in chosen)
    values, sizes = factors[:, used].long(), tuple(factor.size for factor in chosen)
    results: Results = {"mig": ONE_CODE, "modularity": ONE_FACTOR, "infom": ONE_FACTOR}

    def metric(measured: tuple[Tensor, Tensor], *notes: str) -> Metric:
        value, error = (number.item() for number in measured)
        return Metric(value, n, "", error, "higher", _note(used, names, *notes, how))

    binned = binned_information(codes, values, sizes)
    matrix, errors = binned.matrix.tolist(), binned.matrix_error.tolist()
    axes, numbered = ("dimension", "factor"), tuple(str(d) for d in range(dims))
    results["mutual_information"] = Detail(matrix, axes, (numbered, labels), "nats", errors, f"{BINS} bins")
    if dims > 1:
        gaps, gap_errors = (numbers.tolist() for numbers in binned.measure(mutual_information_gap))
        each = ", ".join(f"{factor.name} {gap:.3f}" for factor, gap in zip(chosen, gaps))
        results["mig"] = metric(
            binned.measure(lambda i, h: mutual_information_gap(i, h).mean()), each, BY_DELTA
        )
        results["mig_factors"] = Detail(gaps, ("factor",), (labels,), "", gap_errors, "their mean is the MIG")
    if len(used) > 1:
        results["modularity"] = metric(binned.measure(lambda i, _: modularity(i).mean()), BY_DELTA)

    active = active_by_range(codes)
    count = int(active.sum())
    how_many = f"{count} of {dims} dimensions active, {NEIGHBOURS} neighbours"
    if count == 0:
        nothing = Metric(0.0, n, "", None, "higher", _note(used, names, "no dimension is active", how))
        return results | {"infom": nothing if len(used) > 1 else ONE_FACTOR, "infoc": nothing}
    draws = generator(derive(seed, "infomec"), "cpu")  # the same numbers on every device
    noise, multipliers = (
        torch.randn(shape, dtype=torch.float64, generator=draws).to(codes.device)
        for shape in ((n, count), (DRAWS, n))
    )
    information = neighbour_information(without_ties(codes[:, active], noise), values, sizes)
    results["infoc"] = Skipped("it compares active dimensions, and there is one")
    compared: dict[str, tuple[Score, bool]] = {
        "infom": (info_modularity, len(used) > 1),
        "infoc": (info_compactness, count > 1),
    }
    for name, (score, defined) in compared.items():
        if defined:
            results[name] = metric(information.bootstrap(score, multipliers), BY_BOOTSTRAP, how_many)
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
    """SAP, DCI, explicitness and InfoE."""
    points = codes.double().cpu().numpy()
    x_train, x_test = points[train], points[test]
    dci = ("dci_disentanglement", "dci_completeness", "dci_informativeness")
    predicted = ("sap", *dci, "explicitness", "infoe")
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
    of_fitted = "se over points of the fitted predictors"

    either = sorted(used + continuous)
    if dims < 2:
        results["sap"] = ONE_CODE
    elif not either:
        results["sap"] = Skipped("no factor varies")
    else:
        values = factors[:, either].double().cpu().numpy()
        kinds = tuple(i in continuous for i in either)
        alone, *influences = separated_attributes(x_train, values[train], x_test, values[test], kinds)
        best = np.sort(alone, axis=0)
        error = float(np.sqrt(sum(points.var(ddof=1) / len(points) for points in influences)))
        note = _note(either, names, counts, how, of_fitted)
        results["sap"] = Metric(float((best[-1] - best[-2]).mean()), n, "", error, "higher", note)

    if not used:
        return results | dict.fromkeys(predicted[1:], NO_FACTOR)
    note = _note(used, names, counts, how)
    values = factors[:, used].long().cpu().numpy()
    v_train, v_test = values[train], values[test]
    threads = torch.get_num_threads()
    fit = (protocol.stages, seed, threads)
    importances, correct = dci_importances(x_train, v_train, x_test, v_test, *fit)
    of_parts = importances_of_parts(x_train, v_train, *fit)
    scores = {"dci_disentanglement": dci_disentanglement, "dci_completeness": dci_completeness}
    undefined = {
        "dci_disentanglement": ONE_FACTOR if len(used) < 2 else None,
        "dci_completeness": ONE_DIMENSION if dims < 2 else None,
    }
    for name, score in scores.items():
        missing = undefined[name]
        if missing:
            results[name] = missing
            continue
        se = error_of_parts([score(part) for part in of_parts]) if of_parts else None
        how_se = BY_PARTS if of_parts else "no se: a factor does not vary in a quarter of the codes"
        results[name] = Metric(score(importances), len(x_train), "", se, "higher", f"{note}; {how_se}")
    axes = ("dimension", "factor")
    labels = tuple(str(d) for d in range(dims)), tuple(names[i].name for i in used)
    results["dci_importances"] = Detail(importances.tolist(), axes, labels, "", None, "columns sum to 1")
    results["dci_informativeness"] = average(torch.from_numpy(correct.mean(1)), "", "higher", note)

    curves = [explicitness(x_train, v_train[:, f], x_test, v_test[:, f]) for f in range(len(used))]
    curves = [curve for curve in curves if np.isfinite(curve[0])]
    if curves:
        area = float(np.mean([area for area, _ in curves]))
        error = float(np.mean([influence for _, influence in curves], axis=0).std(ddof=1) / np.sqrt(n))
        results["explicitness"] = Metric(
            area, n, "", error, "higher", f"{note}; se by DeLong's method, of the fitted predictors"
        )
    else:
        results["explicitness"] = Skipped("no value of a factor is in some test codes and not in others")

    shares = [predictive_information(x_train, v_train[:, f]) for f in range(len(used))]
    results["infoe"] = average(
        torch.from_numpy(np.mean(shares, axis=0)), "", "higher", f"{note}; {of_fitted}, the same codes"
    )
    return results


def importances_of_parts(
    train: Array, factors: Values, stages: int, seed: int, threads: int
) -> list[Array] | None:
    """`dci_importances` of four disjoint parts of the codes; None if a factor has one value in a part."""
    parts = _parts(len(train))
    if any((factors[part].min(0) == factors[part].max(0)).any() for part in parts):
        return None
    nothing = train[:0], factors[:0]
    return [dci_importances(train[part], factors[part], *nothing, stages, seed, threads)[0] for part in parts]


def _by_chosen_factors(
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


def _irs(codes: Tensor, factors: Tensor, names: tuple[Factor, ...], how: str) -> Metric | Skipped:
    discrete, continuous = _usable(factors, names)
    used = sorted(discrete + continuous)
    if not used:
        return Skipped("no factor varies")
    if len(codes) < MIN_TRAIN:
        return Skipped(f"quantiles need at least {MIN_TRAIN} codes, and there are {len(codes)}")
    bins = discretize(factors[:, used])
    parts = [interventional_robustness(codes[part], bins[part], BINS) for part in _parts(len(codes))]
    score, *of_parts = torch.stack([interventional_robustness(codes, bins, BINS), *parts]).tolist()
    note = _note(used, names, f"factors in {BINS} bins", how, BY_PARTS)
    return Metric(score, len(codes), "", error_of_parts(of_parts), "higher", note)
