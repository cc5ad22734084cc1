from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sampled import drawn, noise
from torch import Tensor

from vaezoo.data import Factor
from vaezoo.errors import VaezooError
from vaezoo.evaluation.disentanglement import (
    METRICS,
    OF_FACTORS,
    PROTOCOLS,
    Protocol,
    measure_disentanglement,
)
from vaezoo.evaluation.intervention import beta_vae_score
from vaezoo.evaluation.prediction import dci_disentanglement, separated_attributes
from vaezoo.evaluation.report import Detail, Metric, Results, Skipped
from vaezoo.evaluation.unsupervised import UNSUPERVISED


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
TINY = Protocol("tiny", 400, 300, 1, 40, 40)


def measured(codes: Tensor, factors: Tensor | None = None, **options: object) -> Results:
    factors = drawn(900) if factors is None else factors
    options = {"protocol": SMALL, **options}
    return measure_disentanglement(codes, factors, KINDS, "", **options)  # type: ignore[arg-type]


def values(results: Results) -> dict[str, float]:
    """Of the metrics that know the factors."""
    return {name: r.value for name, r in results.items() if name in OF_FACTORS and isinstance(r, Metric)}


def reason(results: Results, name: str) -> str:
    result = results[name]
    assert isinstance(result, Skipped), result
    return result.reason


def test_protocol_of_the_paper() -> None:
    assert PROTOCOLS["locatello2019"] == Protocol("locatello2019", 10_000, 5_000, 100, 10_000, 5_000)


def test_codes_that_are_the_factors_score_highest_in_every_metric() -> None:
    results = measured(drawn(900).double(), encode=lambda factors: factors.double())
    assert tuple(name for name, r in results.items() if not isinstance(r, Detail)) == METRICS
    scores = values(results)
    sap = scores.pop("sap")
    assert all(score >= 0.9 for score in scores.values()), scores
    assert 0 < sap < 0.9  # a line cannot single out a value in the middle, see below


def test_sap_of_factors_that_a_threshold_tells_apart() -> None:
    """With two values the best code is always right and the others half of the time: 0.5.
    With continuous factors it is a difference of squared correlations, and only there can it be .9."""
    bits = drawn(3000, (2, 2, 2)).double()
    train, test = bits[:2000].numpy(), bits[2000:].numpy()
    scores, _, _ = separated_attributes(train, train, test, test, (False,) * 3)
    assert np.diag(scores).min() == 1
    assert scores[~np.eye(3, dtype=bool)] == pytest.approx(0.5, abs=0.05)
    x = noise(900, 3)
    kinds = tuple(Factor(name, 0, "continuous") for name in "abc")
    straight = measure_disentanglement(x, x, kinds, "", protocol=SMALL)
    assert values(straight)["sap"] >= 0.9
    twice = measure_disentanglement(torch.cat([x, x], 1), x, kinds, "", protocol=SMALL)
    assert values(twice)["sap"] == pytest.approx(0, abs=1e-9)
    for name in OF_FACTORS:
        assert name in ("sap", "irs") or isinstance(straight[name], Skipped), name


def test_a_second_copy_of_each_code() -> None:
    """No gaps are left; each code still is of one factor, but no factor of one code."""
    once = drawn(900).double()
    both = values(measured(torch.cat([once, once], 1), encode=lambda factors: factors.double().repeat(1, 2)))
    assert both["mig"] <= 0.1
    assert both["sap"] <= 0.2
    assert both["dci_disentanglement"] >= 0.9
    assert both["dci_completeness"] == pytest.approx(1 - math.log(2) / math.log(6), abs=0.05)
    assert both["modularity"] >= 0.9
    assert both["explicitness"] >= 0.9
    assert both["factor_vae_score"] == 1
    assert both["irs"] == pytest.approx(1)
    assert both["infom"] >= 0.9
    assert both["infoc"] == pytest.approx((1 / 2 - 1 / 6) / (1 - 1 / 6), abs=0.05)
    assert both["infoe"] >= 0.9


def test_noise_scores_what_it_scores_of_shuffled_factors() -> None:
    """Independent noise is inside a permutation null."""
    factors, codes = drawn(900), noise(900, 3)
    ours = values(measured(codes, factors, protocol=TINY))
    generator = torch.Generator().manual_seed(3)
    null = [
        values(measured(codes, factors[torch.randperm(900, generator=generator)], protocol=TINY))
        for _ in range(12)
    ]
    for name, value in ours.items():
        of_null = np.array([scores[name] for scores in null])
        assert abs(value - of_null.mean()) < 4 * of_null.std(ddof=1), name


def test_a_rotation_by_45_degrees_leaves_linear_information() -> None:
    kinds = (Factor("a", 10, "ordinal"), Factor("b", 10, "ordinal"))
    factors = drawn(1800, (10, 10))
    rotation = torch.tensor([[1.0, -1], [1, 1]], dtype=torch.float64) / math.sqrt(2)
    protocol = Protocol("small", 1200, 600, 10, 60, 60)
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
    assert straight["irs"] == pytest.approx(1)
    assert turned["irs"] < 0.7
    for name in ("infom", "infoc"):
        assert straight[name] > 0.9, name
        assert turned[name] < 0.2, name
    assert turned["infoe"] == pytest.approx(straight["infoe"], abs=0.02)


def test_the_same_call_gives_the_same_numbers_and_leaves_the_random_state() -> None:
    factors = drawn(900)
    codes = torch.cat([factors.double() @ noise(3, 3), noise(900, 1)], 1)
    mixing = noise(3, 4)

    def again(seed: int) -> Results:
        return measured(codes, factors, protocol=TINY, encode=lambda rows: rows.double() @ mixing, seed=seed)

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (the state that an unseeded predictor would draw from)
    first = again(5)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    drawn_after = np.random.get_state()[1].copy()  # type: ignore[union-attr,index] # noqa: NPY002
    assert again(5) == first
    assert (np.random.get_state()[1] == drawn_after).all()  # type: ignore[union-attr,index] # noqa: NPY002
    assert again(6) != first


# Traps and bad input


def test_dimensions_that_hardly_vary_are_pruned() -> None:
    """A dimension that no image moves, but for rounding, would win every vote."""

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

    def encode(factors: Tensor) -> Tensor:
        return torch.cat([factors.double(), torch.full((len(factors), 1), 0.1, dtype=torch.float64)], 1)

    factors = drawn(900)
    with_it = values(measured(encode(factors), factors, encode=encode))
    without = values(measured(factors.double(), factors, encode=lambda rows: rows.double()))
    assert set(with_it) == set(OF_FACTORS)
    assert with_it.pop("modularity") == pytest.approx(
        without.pop("modularity") * 3 / 4
    )  # a dead code counts 0
    for name in set(OF_FACTORS) - {"sap", "modularity", "dci_completeness", "beta_vae_score"}:
        assert with_it[name] == pytest.approx(without[name], abs=0.01), name
    dead = values(measured(torch.full((900, 2), 0.1), factors, encode=lambda rows: torch.ones(len(rows), 2)))
    assert set(dead) == set(OF_FACTORS)
    none = {"mig", "sap", "modularity", "dci_disentanglement", "dci_completeness", "factor_vae_score", "irs"}
    for name in none | {"infom", "infoc"}:
        assert dead[name] == pytest.approx(0, abs=1e-9), name
    assert dead["infoe"] == pytest.approx(0, abs=0.02)
    assert dead["explicitness"] == 0.5
    assert dead["beta_vae_score"] < 0.6


def test_a_constant_factor_is_left_out_and_named() -> None:
    factors = drawn(900)
    factors[:, 1] = 4
    results = measured(factors.double(), factors)
    for name in set(OF_FACTORS) - {"beta_vae_score", "factor_vae_score"}:
        result = results[name]
        assert isinstance(result, Metric), name
        assert math.isfinite(result.value)
        assert "without b" in result.note
    alone = measured(factors.double(), torch.where(torch.tensor([True, False, False]), factors, 0))
    for name in ("dci_disentanglement", "modularity", "infom"):
        assert "only one discrete factor varies" in reason(alone, name)
    assert values(alone)["dci_informativeness"] > 0.9
    nothing = measured(factors.double(), torch.zeros_like(factors))
    for name in OF_FACTORS:
        assert "varies" in reason(nothing, name) or "images of chosen" in reason(nothing, name), name
    assert not any(isinstance(result, Detail) for result in nothing.values())


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
    for name in ("mig", "sap", "dci_completeness", *UNSUPERVISED):
        assert "the latent has one" in reason(one, name)
    assert "there is one" in reason(one, "infoc")
    assert math.isfinite(values(one)["dci_disentanglement"])
    assert "at least 100 codes" in reason(few, "irs")
    for n in (0, 1, 2):
        for name, result in measured(drawn(n).double(), drawn(n)).items():
            assert isinstance(result, Skipped | Detail) or math.isfinite(result.value), name


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


def test_every_metric_has_a_standard_error() -> None:
    codes = drawn(900).double() + 0.5 * noise(900, 3)
    results = measured(codes, encode=lambda rows: rows + 0.5 * torch.randn(len(rows), 3))
    for name in METRICS:
        result = results[name]
        assert isinstance(result, Metric), name
        assert result.se is not None, name
        assert 0 <= result.se < 0.2, name
        assert ("se " in result.note) or name.endswith(("score", "informativeness")), name


def test_details_are_what_is_behind_the_metrics() -> None:
    factors = drawn(900)
    factors[:, 1] = 4
    codes = torch.cat([factors.double() + 0.5 * noise(900, 3), noise(900, 1)], 1)
    results = measured(codes, factors)
    details = {name: result for name, result in results.items() if isinstance(result, Detail)}
    assert set(details) == {"mutual_information", "mig_factors", "dci_importances"}
    for name in ("mutual_information", "dci_importances"):
        assert details[name].axes == ("dimension", "factor")
        assert details[name].labels == (("0", "1", "2", "3"), ("a", "c"))
        assert np.shape(details[name].values) == (4, 2)
    information = np.array(details["mutual_information"].values)
    assert np.shape(details["mutual_information"].se) == (4, 2)
    assert information.argmax(0).tolist() == [0, 2]
    gaps = details["mig_factors"]
    assert (gaps.axes, gaps.labels) == (("factor",), (("a", "c"),))
    assert np.mean(gaps.values) == pytest.approx(values(results)["mig"])
    importances = np.array(details["dci_importances"].values)
    assert importances.sum(0) == pytest.approx([1, 1])
    assert dci_disentanglement(importances) == values(results)["dci_disentanglement"]


def test_a_factor_that_one_part_does_not_have_leaves_dci_without_an_error() -> None:
    factors = drawn(300)
    factors[:, 1] = 0
    factors[5, 1] = 1
    results = measured(noise(300, 2), factors)
    for name in ("dci_disentanglement", "dci_completeness"):
        result = results[name]
        assert isinstance(result, Metric)
        assert result.se is None
        assert "does not vary in a quarter" in result.note
