from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score
from torch import Tensor

from vaezoo.data import Factor
from vaezoo.errors import VaezooError
from vaezoo.evaluation.boosting import boost
from vaezoo.evaluation.disentanglement import (
    METRICS,
    PROTOCOLS,
    Protocol,
    beta_vae_score,
    dci_completeness,
    dci_disentanglement,
    dci_importances,
    discretize,
    explicitness,
    factor_vae_score,
    fixed_factor_variances,
    information_matrix,
    measure_disentanglement,
    modularity,
    mutual_information,
    mutual_information_gap,
    separated_attributes,
    shared_factor_differences,
)
from vaezoo.evaluation.report import Metric, Results, Skipped

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


# All metrics

KINDS = (Factor("a", 3, "categorical"), Factor("b", 6, "ordinal"), Factor("c", 10, "circular"))
SMALL = Protocol("small", 600, 300, 10, 60, 60)


def measured(codes: Tensor, factors: Tensor | None = None, **options: object) -> Results:
    factors = drawn(900) if factors is None else factors
    options = {"protocol": SMALL, **options}
    return measure_disentanglement(codes, factors, KINDS, "", **options)  # type: ignore[arg-type]


def values(results: Results) -> dict[str, float]:
    return {name: result.value for name, result in results.items() if isinstance(result, Metric)}


def reason(results: Results, name: str) -> str:
    result = results[name]
    assert isinstance(result, Skipped), result
    return result.reason


def noise(n: int, dims: int, seed: int = 1) -> Tensor:
    return torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_protocol_of_the_paper() -> None:
    assert PROTOCOLS["locatello2019"] == Protocol("locatello2019", 10_000, 5_000, 100, 10_000, 5_000)


def test_codes_that_are_the_factors_score_highest_in_every_metric() -> None:
    """REFERENCES A.17."""
    results = measured(drawn(900).double(), encode=lambda factors: factors.double())
    assert tuple(results) == METRICS
    scores = values(results)
    sap = scores.pop("sap")
    assert all(score >= 0.9 for score in scores.values()), scores
    assert 0 < sap < 0.9  # a line cannot single out a value in the middle, see below


def test_sap_of_factors_that_a_threshold_tells_apart() -> None:
    """REFERENCES A.17. With two values the best code is always right and the others half of the time: 0.5.
    With continuous factors it is a difference of squared correlations, and only there can it be .9."""
    bits = drawn(3000, (2, 2, 2)).double()
    scores = separated_attributes(
        bits[:2000].numpy(), bits[:2000].numpy(), bits[2000:].numpy(), bits[2000:].numpy(), (False,) * 3
    )
    assert np.diag(scores).min() == 1
    assert scores[~np.eye(3, dtype=bool)] == pytest.approx(0.5, abs=0.05)
    x = noise(900, 3)
    kinds = tuple(Factor(name, 0, "continuous") for name in "abc")
    straight = measure_disentanglement(x, x, kinds, "", protocol=SMALL)
    assert values(straight)["sap"] >= 0.9
    twice = measure_disentanglement(torch.cat([x, x], 1), x, kinds, "", protocol=SMALL)
    assert values(twice)["sap"] == pytest.approx(0, abs=1e-9)
    for name in METRICS:
        assert name == "sap" or isinstance(straight[name], Skipped)


def test_a_second_copy_of_each_code() -> None:
    """REFERENCES A.17: no gaps are left; each code still is of one factor, but no factor of one code."""
    once = drawn(900).double()
    both = values(measured(torch.cat([once, once], 1), encode=lambda factors: factors.double().repeat(1, 2)))
    assert both["mig"] <= 0.1
    assert both["sap"] <= 0.2
    assert both["dci_disentanglement"] >= 0.9
    assert both["dci_completeness"] == pytest.approx(1 - math.log(2) / math.log(6), abs=0.05)
    assert both["modularity"] >= 0.9
    assert both["explicitness"] >= 0.9
    assert both["factor_vae_score"] == 1


def test_dci_of_known_importances() -> None:
    """REFERENCES A.17."""
    copies = np.concatenate([np.eye(5), np.eye(5)])
    assert dci_disentanglement(copies) == pytest.approx(1, abs=1e-8)
    assert dci_completeness(copies) == pytest.approx(1 - math.log(2) / math.log(10), abs=1e-8)
    assert dci_disentanglement(np.ones((4, 3))) == pytest.approx(0, abs=1e-8)
    assert dci_completeness(np.ones((4, 3))) == pytest.approx(0, abs=1e-8)
    assert dci_disentanglement(np.zeros((4, 3))) == dci_completeness(np.zeros((4, 3))) == 0
    # A useless code has no weight; one of three quarters counts three times one of a quarter.
    importances = np.array([[0.75, 0.0], [0.125, 0.125], [0, 0]])
    assert dci_disentanglement(importances) == pytest.approx(0.75, abs=1e-8)


def test_noise_scores_what_it_scores_of_shuffled_factors() -> None:
    """REFERENCES A.17: independent noise is inside a permutation null."""
    factors, codes = drawn(900), noise(900, 3)
    protocol = Protocol("tiny", 400, 300, 3, 40, 40)
    ours = values(measured(codes, factors, protocol=protocol))
    generator = torch.Generator().manual_seed(3)
    null = [
        values(measured(codes, factors[torch.randperm(900, generator=generator)], protocol=protocol))
        for _ in range(12)
    ]
    for name, value in ours.items():
        of_null = np.array([scores[name] for scores in null])
        assert abs(value - of_null.mean()) < 4 * of_null.std(ddof=1), name


def test_a_rotation_by_45_degrees_leaves_linear_information() -> None:
    """REFERENCES A.17."""
    kinds = (Factor("a", 10, "ordinal"), Factor("b", 10, "ordinal"))
    factors = drawn(1800, (10, 10))
    rotation = torch.tensor([[1.0, -1], [1, 1]], dtype=torch.float64) / math.sqrt(2)
    protocol = Protocol("small", 1200, 600, 20, 60, 60)
    straight, turned = (
        values(measure_disentanglement(codes, factors, kinds, "", protocol=protocol))
        for codes in (factors.double(), factors.double() @ rotation)
    )
    assert straight["mig"] > 0.9
    assert turned["mig"] < 0.05
    assert straight["sap"] > 10 * abs(turned["sap"])
    assert straight["dci_disentanglement"] > 0.9
    assert turned["dci_disentanglement"] < 0.2
    assert straight["modularity"] > 0.9
    assert turned["modularity"] < 0.2
    assert turned["explicitness"] == pytest.approx(straight["explicitness"], abs=0.02)
    assert turned["explicitness"] > 0.9


def test_the_same_call_gives_the_same_numbers_and_leaves_the_random_state() -> None:
    factors = drawn(900)
    codes = torch.cat([factors.double() @ noise(3, 3), noise(900, 1)], 1)
    mixing = noise(3, 4)

    def again(seed: int) -> Results:
        return measured(codes, factors, encode=lambda rows: rows.double() @ mixing, seed=seed)

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (the state that an unseeded predictor would draw from)
    first = again(5)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    drawn_after = np.random.get_state()[1].copy()  # type: ignore[union-attr,index] # noqa: NPY002
    assert again(5) == first
    assert (np.random.get_state()[1] == drawn_after).all()  # type: ignore[union-attr,index] # noqa: NPY002
    assert again(6) != first


# Against their definitions


def test_boosted_trees_are_those_of_scikit_learn() -> None:
    factors = drawn(700)
    x = (factors.double() @ noise(3, 4) + 0.5 * noise(700, 4)).numpy().astype(np.float32)
    x = np.concatenate([x[:, :3], np.round(x[:, 3:], 1), np.full((700, 1), 3, np.float32)], 1)
    for y in (*factors.numpy().T, factors.numpy()[:, 0] > 0):
        theirs = GradientBoostingClassifier(n_estimators=12, random_state=0).fit(x[:500], y[:500])
        ours = boost(x[:500], y[:500], x[500:], stages=12)
        np.testing.assert_allclose(ours.importances, theirs.feature_importances_, atol=0.01)
        assert (ours.predicted == theirs.predict(x[500:])).mean() > 0.97
        assert ours.importances[4] == 0


def test_boosted_trees_without_ties_are_exactly_those_of_scikit_learn() -> None:
    x = noise(600, 3).numpy().astype(np.float32)
    y = (x[:, 0] + 0.3 * x[:, 1] ** 2 > 0.2).astype(int) + (x[:, 2] > 1)
    theirs = GradientBoostingClassifier(n_estimators=4, random_state=0).fit(x[:400], y[:400])
    ours = boost(x[:400], y[:400], x[400:], stages=4, seed=1)
    np.testing.assert_allclose(ours.importances, theirs.feature_importances_, atol=1e-9)
    assert (ours.predicted == theirs.predict(x[400:])).all()


def test_boosted_trees_do_not_depend_on_threads() -> None:
    factors = drawn(300)
    x, y = noise(300, 3).numpy(), factors[:, 2].numpy()
    one, two = (boost(x, y, x, stages=5, threads=threads) for threads in (1, 2))
    assert (one.importances == two.importances).all()
    assert (one.predicted == two.predicted).all()


def test_explicitness_is_the_area_under_scikit_learns_curve() -> None:
    factors = drawn(900).numpy()
    x = factors @ noise(3, 4).numpy() + noise(900, 4).numpy()
    scaled = (x - x[:600].mean(0)) / x[:600].std(0)
    y = factors[:, 1]
    probabilities = LogisticRegression(max_iter=1000).fit(scaled[:600], y[:600]).predict_proba(scaled[600:])
    theirs = np.mean([roc_auc_score(y[600:] == value, probabilities[:, value]) for value in range(6)])
    assert explicitness(x[:600], y[:600], x[600:], y[600:]) == pytest.approx(theirs, abs=1e-6)


def test_modularity_by_hand() -> None:
    information = torch.tensor([[0.5, 0, 0], [0.3, 0.3, 0.3], [1, 0.5, 0], [0, 0, 0]], dtype=torch.float64)
    assert modularity(information).tolist() == pytest.approx([1, 0, 1 - 0.25 / 2, 0])


def test_information_matrix_is_that_of_scikit_learn() -> None:
    factors, codes = drawn(500), noise(500, 4) + drawn(500)[:, 1:2]
    ours = information_matrix(codes, factors, SIZES)
    bins = discretize(codes).T.numpy()
    theirs = [[mutual_info_score(bin_, column) for column in factors.T.numpy()] for bin_ in bins]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-10)


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


# Traps and bad input


def test_dimensions_that_hardly_vary_are_pruned() -> None:
    """REFERENCES D.10: a dimension that no image moves, but for rounding, would win every vote."""

    def encode(factors: Tensor) -> Tensor:
        still = 1e-3 * (factors.double().sum(1, keepdim=True) % 2)
        return torch.cat([factors.double(), still, torch.zeros(len(factors), 1).double()], 1)

    factors = drawn(900)
    results = measured(encode(factors), factors, encode=encode)
    score = results["factor_vae_score"]
    assert isinstance(score, Metric)
    assert score.value == 1
    assert "3 of 5 dimensions kept" in score.note
    nothing = measured(1e-3 * factors.double(), factors, encode=lambda rows: 1e-3 * rows.double())
    assert values(nothing)["factor_vae_score"] == 0


def test_a_constant_code_breaks_no_ratio() -> None:
    """REFERENCES D.10."""

    def encode(factors: Tensor) -> Tensor:
        return torch.cat([factors.double(), torch.full((len(factors), 1), 0.1, dtype=torch.float64)], 1)

    factors = drawn(900)
    with_it = values(measured(encode(factors), factors, encode=encode))
    without = values(measured(factors.double(), factors, encode=lambda rows: rows.double()))
    assert set(with_it) == set(METRICS)
    assert with_it.pop("modularity") == pytest.approx(
        without.pop("modularity") * 3 / 4
    )  # a dead code counts 0
    for name in ("mig", "dci_disentanglement", "dci_informativeness", "explicitness", "factor_vae_score"):
        assert with_it[name] == pytest.approx(without[name], abs=0.01), name
    dead = values(measured(torch.full((900, 2), 0.1), factors, encode=lambda rows: torch.ones(len(rows), 2)))
    assert set(dead) == set(METRICS)
    for name in ("mig", "sap", "modularity", "dci_disentanglement", "dci_completeness", "factor_vae_score"):
        assert dead[name] == pytest.approx(0, abs=1e-9), name
    assert dead["explicitness"] == 0.5
    assert dead["beta_vae_score"] < 0.6


def test_a_constant_factor_is_left_out_and_named() -> None:
    """REFERENCES D.10."""
    factors = drawn(900)
    factors[:, 1] = 4
    results = measured(factors.double(), factors)
    for name in ("mig", "sap", "dci_disentanglement", "dci_informativeness", "modularity", "explicitness"):
        result = results[name]
        assert isinstance(result, Metric), name
        assert math.isfinite(result.value)
        assert "without b" in result.note
    alone = measured(factors.double(), torch.where(torch.tensor([True, False, False]), factors, 0))
    for name in ("dci_disentanglement", "modularity"):
        assert "only one discrete factor varies" in reason(alone, name)
    assert values(alone)["dci_informativeness"] > 0.9
    for name, result in measured(factors.double(), torch.zeros_like(factors)).items():
        assert isinstance(result, Skipped), name


def test_codes_that_are_not_finite() -> None:
    codes = drawn(900).double()
    codes[7, 1] = math.nan
    codes[8, 0] = math.inf
    for name in METRICS:
        assert reason(measured(codes), name) == "2 of 900 codes are not finite"
    broken = measured(drawn(900).double(), encode=lambda rows: rows / 0.0)
    for name in ("beta_vae_score", "factor_vae_score"):
        assert "not finite" in reason(broken, name)


def test_shapes_that_do_not_match() -> None:
    for codes, factors in ((drawn(9), drawn(8)), (drawn(9), drawn(9)[:, :2]), (drawn(9)[0], drawn(9))):
        with pytest.raises(VaezooError, match=r"they must be \[N, D\] and \[N, 3\], a, b, c"):
            measured(codes.double(), factors)


def test_too_few_points_and_images_that_cannot_be_chosen() -> None:
    few = measured(drawn(90).double(), drawn(90))
    assert "at least 100 codes" in reason(few, "dci_disentanglement")
    assert "there are 60 and 30" in reason(few, "sap")
    assert isinstance(few["mig"], Metric)
    assert "images of chosen factors" in reason(few, "factor_vae_score")
    one = measured(drawn(900)[:, :1].double())
    for name in ("mig", "sap", "dci_completeness"):
        assert "the latent has one" in reason(one, name)
    assert math.isfinite(values(one)["dci_disentanglement"])


def test_standard_errors_are_those_of_a_proportion() -> None:
    correct = beta_vae_score(np.eye(3).repeat(20, 0), np.arange(3).repeat(20), np.eye(3), np.array([0, 1, 0]))
    assert correct.tolist() == [True, True, False]
    results = measured(
        drawn(900).double() + 2 * noise(900, 3), encode=lambda rows: rows + 9 * torch.rand(len(rows), 3)
    )
    score = results["beta_vae_score"]
    assert isinstance(score, Metric)
    assert 0 < score.value < 1
    assert score.se == pytest.approx(math.sqrt(score.value * (1 - score.value) / (score.n - 1)))
    assert score.n == SMALL.test_batches


def test_importances_of_mixed_codes() -> None:
    factors = drawn(900, (5, 5)).numpy()
    codes = np.stack([factors[:, 0], factors.sum(1)], 1).astype(float)
    importances, correct = dci_importances(codes[:600], factors[:600], codes[600:], factors[600:], 20)
    assert importances.sum(0) == pytest.approx([1, 1])
    assert importances[0, 0] > 0.95
    assert 0.2 < importances[1, 1] < 0.95
    assert correct.mean(0).min() > 0.9
