from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vaezoo.errors import VaezooError
from vaezoo.evaluation.report import Better, Metric, Report
from vaezoo.evaluation.side_by_side import CONFIDENCE, Sample, difference, side_by_side

HEADER: dict[str, Any] = {
    "data": {"name": "d", "fingerprint": "f", "binarize": "none"},
    "split": "test",
    "n": 10,
    "features": {"name": "net", "hash": "0"},
}


def report(value: float, se: float | None = None, better: Better | None = "higher", **header: Any) -> Report:
    return Report({**HEADER, **header}, {"a/x": Metric(value, 10, "u", se, better)}, {})


def sample(*values: float) -> Sample:
    return Sample(values, (None,) * len(values))


def verdicts(reports: Any, baseline: str | None = None) -> dict[str, str]:
    (row,) = side_by_side(reports, baseline).rows
    return {name: cell.verdict for name, cell in row.cells.items()}


# --- The interval ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 5), (10, 4)])
def test_the_interval_over_seeds_is_welchs(m: int, n: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, m), rng.normal(0, 0.5, n)
    gap, half_width = difference(sample(*a), sample(*b))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE)
    assert half_width is not None
    assert (gap - half_width, gap + half_width) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_one_run_against_several_is_taken_to_spread_as_they_do() -> None:
    """A pooled t interval, to which a single value adds no freedom."""
    several = np.array([1.0, 2.0, 4.0])
    for a, b, sign in ((sample(5.0), sample(*several), 1), (sample(*several), sample(5.0), -1)):
        gap, half_width = difference(a, b)
        assert gap == pytest.approx(sign * (5 - 7 / 3))
        expected = stats.ttest_ind([5.0], several).confidence_interval(CONFIDENCE)
        assert half_width == pytest.approx((expected.high - expected.low) / 2, rel=1e-9)


def test_single_runs_have_a_normal_interval_of_their_errors() -> None:
    gap, half_width = difference(Sample((3.0,), (0.3,)), Sample((1.0,), (0.4,)))
    assert gap == 2
    assert half_width == pytest.approx(stats.norm.ppf(0.975) * 0.5, rel=1e-6)
    assert difference(sample(3.0), Sample((1.0,), (0.4,))) == (2.0, None)


def test_seeds_that_all_agree_have_an_interval_of_no_width() -> None:
    assert difference(sample(3.0, 3.0), sample(1.0, 1.0)) == (2.0, 0.0)
    assert verdicts({"a": [report(3), report(3)], "b": [report(1), report(1)]}) == {"a": "best", "b": "worse"}
    assert verdicts({"a": [report(3), report(3)], "b": [report(3), report(3)]})["b"] == "noise"


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_seeds_of_one_distribution_are_within_noise_95_times_in_100(seeds: int) -> None:
    """And one that is several spreads worse hardly ever is. Welch's test is a little conservative for few
    seeds, so at least 95, up to four standard errors, and at most 98.5."""
    rng = np.random.default_rng(seeds)
    trials = 1000
    values = rng.normal(3, 0.7, (trials, 3, seeds)) + np.array([0, 0, -7]).reshape(1, 3, 1)
    equal, worse = [], []
    for a, b, c in values:
        found = verdicts({name: list(map(report, group)) for name, group in (("a", a), ("b", b), ("c", c))})
        equal.append("noise" in (found["a"], found["b"]))
        worse.append(found["c"] == "worse")
    error = math.sqrt(0.95 * 0.05 / trials)
    assert 0.95 - 4 * error < np.mean(equal) < 0.985
    assert np.mean(worse) > 0.95


def test_single_runs_of_one_value_are_within_noise_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    trials = 1000
    pairs = rng.normal(3, [0.3, 1.1], (trials, 2))
    equal = ["noise" in verdicts({"a": report(a, 0.3), "b": report(b, 1.1)}).values() for a, b in pairs]
    assert abs(np.mean(equal) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


# --- The table ------------------------------------------------------------------------------------------


def test_mean_and_spread_are_those_of_numpy() -> None:
    values = [0.3, 0.5, 0.1, 0.7]
    (row,) = side_by_side({"a": list(map(report, values))}).rows
    found = row.cells["a"].sample
    assert found.values == tuple(values)
    assert found.mean == np.mean(values)
    assert found.spread == np.std(values, ddof=1)
    assert str(found) == "0.40 ± 0.26"


@pytest.mark.parametrize(
    ("better", "best", "expected"),
    [
        ("higher", "c", {"a": "worse", "b": "noise", "c": "best"}),
        ("lower", "a", {"a": "best", "b": "noise", "c": "worse"}),
        (None, None, {"a": "", "b": "", "c": ""}),
    ],
)
def test_the_best_is_the_reference(better: Better | None, best: str | None, expected: dict[str, str]) -> None:
    values = {"a": [0.9, 1.0, 1.1], "b": [0.0, 1.5, 3.0], "c": [1.9, 2.0, 2.1]}
    reports = {name: [report(v, better=better) for v in group] for name, group in values.items()}
    assert verdicts(reports) == expected
    compared = side_by_side(reports)
    row = compared.rows[0]
    for name, cell in row.cells.items():
        if best is not None:
            assert cell.gap == pytest.approx(np.mean(values[name]) - np.mean(values[best]))
    text = compared.table("pipe").splitlines()[-1]
    assert text.count("**") == (2 if best else 0)
    assert text.count("≈") == text.count("−") == (1 if best else 0)


@pytest.mark.parametrize(
    ("better", "expected"),
    [("higher", ["worse", "better"]), ("lower", ["better", "worse"]), (None, ["differs", "differs"])],
)
def test_a_baseline_is_the_reference_of_every_metric(better: Better | None, expected: list[str]) -> None:
    reports = {name: report(value, 0.1, better) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    assert verdicts(reports, "b") == {"a": expected[0], "b": "baseline", "c": expected[1]}
    near = {**reports, "d": report(2.2, 0.1, better)}
    assert verdicts(near, "b")["d"] == "noise"
    assert "Beside the baseline, b," in side_by_side(reports, "b").caption()


def test_without_errors_nothing_is_said_but_of_equals() -> None:
    found = verdicts({"a": report(2), "b": report(1, 0.1), "c": report(2)})
    assert found == {"a": "best", "b": "unknown", "c": "noise"}


def test_metrics_that_some_models_or_seeds_lack() -> None:
    lacking = Report(HEADER, {}, {"a/x": "no prior"})
    compared = side_by_side({"a": [report(1), report(2)], "b": lacking, "c": [report(4), lacking]})
    (row,) = compared.rows
    assert set(row.cells) == {"a", "c"}
    assert row.cells["c"].sample.values == (4,)
    assert compared.table().splitlines()[-1].split()[-2:] == ["*", "u"]
    assert " - " in compared.table().splitlines()[-1]
    # The baseline may be the one that lacks it: then there is nothing to judge by.
    (row,) = side_by_side({"a": report(1), "b": lacking}, "b").rows
    assert row.cells["a"].verdict == ""


def test_the_caption_says_what_was_done() -> None:
    many, one = [report(1), report(2)], report(1, 0.1)
    captions = [side_by_side(r).caption() for r in ({"a": many, "b": many}, {"a": one, "b": one})]
    captions.append(side_by_side({"a": many, "b": one}).caption())
    assert ["Welch" in caption for caption in captions] == [True, False, False]
    assert ["standard deviation over seeds" in caption for caption in captions] == [True, False, True]
    assert ["nothing of the spread over seeds" in caption for caption in captions] == [False, True, False]
    assert ["taken to spread as the other" in caption for caption in captions] == [False, False, True]
    for caption in captions:
        assert "without a correction for their number" in caption
    assert side_by_side({"a": one}).caption() == "Value ± standard error of one run."


def test_plain_values() -> None:
    content = side_by_side({"a": [report(1), report(2)], "b": report(1.2)}).to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["seeds"] == {"a": 2, "b": 1}
    cell = content["rows"][0]["cells"]["b"]
    assert (cell["values"], cell["spread"], cell["verdict"]) == ([1.2], None, "noise")
    assert cell["difference"] == pytest.approx(-0.3)


# --- What is not comparable -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"split": "train"},
        {"n": 11},
        {"features": {"name": "net", "hash": "1"}},
        {"data": {"fingerprint": "g"}},
        {"data": {"binarize": "static"}},
    ],
)
def test_reports_of_something_else_are_refused(header: dict[str, Any]) -> None:
    with pytest.raises(VaezooError, match=r"reports of a and b cannot be compared: .* is .* and "):
        side_by_side({"a": report(1), "b": report(2, **header)})
    side_by_side({"a": report(1), "b": report(2, seed=3, data={**HEADER["data"], "name": "a copy"})})


@pytest.mark.parametrize("reports", [{}, {"a": []}])
def test_nothing_to_compare(reports: Any) -> None:
    with pytest.raises(VaezooError, match="at least one report"):
        side_by_side(reports)


def test_a_baseline_that_is_not_there() -> None:
    with pytest.raises(VaezooError, match="unknown baseline 'v'; did you mean 'vae'"):
        side_by_side({"vae": report(1)}, "v")
