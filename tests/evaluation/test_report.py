from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from vaezoo.errors import VaezooError
from vaezoo.evaluation.report import SCHEMA, Detail, Metric, Report, Results, Skipped, average, with_error


@pytest.fixture
def report() -> Report:
    header = {"model": {"name": "vae"}, "data": {"name": "digits"}, "split": "test"}
    results: Results = {
        "a/x": Metric(1.25, 10, "nats per image", 0.5, "lower", "a note"),
        "a/nan": Metric(math.nan, 10, ""),
        "a/inf": Metric(math.inf, 10, ""),
        "b/y": Skipped("no reason"),
        "b/curve": Detail([1.0, 2.0], ("k",), (("1", "5"),), "nats", [0.1, 0.2]),
        "b/broken": Detail([[1.0, math.nan]], ("code", "factor")),
    }
    return Report.of(header, results)


def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert json.loads(report.to_json())["schema"] == SCHEMA


def test_values_that_are_not_finite_are_skipped_with_a_reason(report: Report) -> None:
    assert set(report.metrics) == {"a/x"}
    assert "nan" in report.skipped["a/nan"]
    assert "inf" in report.skipped["a/inf"]
    assert report.skipped["b/y"] == "no reason"
    assert set(report.details) == {"b/curve"}
    assert "not finite" in report.skipped["b/broken"]


def test_reports_of_schema_1_load(report: Report) -> None:
    content = report.to_dict() | {"schema": 1}
    del content["details"]
    old = Report.from_dict(content)
    assert old.metrics == report.metrics
    assert old.details == {}


def test_access(report: Report) -> None:
    assert report["a/x"].value == 1.25
    assert "a/x" in report
    assert "b/y" not in report
    with pytest.raises(VaezooError, match="no reason"):
        report["b/y"]
    with pytest.raises(VaezooError, match="did you mean 'a/x'"):
        report["a/z"]


def test_every_metric_and_reason_is_shown(report: Report) -> None:
    for text in (report.table(), report.to_markdown()):
        for part in ("a/x", "1.25", "0.5", "nats per image", "a note", "b/y", "no reason", "a/nan"):
            assert part in text
    assert report.to_markdown().startswith("# vae on digits (test)")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([[1.0], [1.0, 2.0]], ("a", "b")), "rows of equal length"),
        ((["x"], ("a",)), "not numbers"),
        (([1.0], ("a", "b")), "values of shape"),
        (([[[1.0]]], ("a", "b", "c")), "values of shape"),
        (([1.0, 2.0], ("a",), (("x",),)), "has labels"),
        (([[1.0, 2.0]], ("a", "b"), (("x",),)), "has labels"),
        (([1.0, 2.0], ("a",), (), "", [0.1]), "standard errors of shape"),
    ],
)
def test_details_that_cannot_be_drawn_are_refused(arguments: Any, says: str) -> None:
    with pytest.raises(VaezooError, match=says):
        Detail(*arguments)
    Detail([[1.0, 2.0]], ("dimension", "factor"), ((), ("x", "y")))  # numbered along one axis


def test_errors_that_are_not_finite_are_not_reported() -> None:
    results: Results = {
        "a/x": Metric(1.0, 3, "", math.nan, None, "a note"),
        "a/y": Detail([1.0], ("k",), se=[math.inf]),
        "a/z": Detail([], ("k",)),
    }
    report = Report.of({}, results)
    assert report.metrics == {
        "a/x": Metric(1.0, 3, "", None, None, "a note; the standard error is not finite")
    }
    assert report.skipped == {"a/y": "some values are not finite", "a/z": "there are no values"}
    report.to_json()


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (231.5349, 0.152, "231.53 ± 0.15"),
        (231.5349, 0.0999, "231.535 ± 0.100"),
        (231.5349, 15.2, "232 ± 15"),
        (-0.5, 3.0, "-0.5 ± 3.0"),
        (1.5e-9, 2e-10, "1.5e-09 ± 2e-10"),
        (2.5e7, 12.0, "2.5e+07 ± 12"),
        (0.123456, None, "0.1235"),
        (7.0, 0.0, "7"),
    ],
)
def test_a_value_is_shown_to_the_place_of_its_error(value: float, error: float | None, text: str) -> None:
    assert with_error(value, error) == text


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"schema": 2}', '{"schema": 1}'])
def test_files_that_are_no_reports_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(VaezooError):
        Report.load(path)


def test_average_is_over_samples_with_its_standard_error() -> None:
    values = torch.tensor([1.0, 2, 3, 6])
    metric = average(values, "u")
    assert isinstance(metric, Metric)
    assert metric.value == 3
    assert metric.se == pytest.approx(values.std().item() / 2)
    single = average(torch.tensor([2.0]), "u")
    assert isinstance(single, Metric)
    assert single.se is None
    assert average(torch.tensor([1.0, math.nan, math.inf]), "u") == Skipped("2 of 3 values are not finite")
