from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from vaezoo.errors import VaezooError
from vaezoo.evaluation.charts import draw, rate_distortion, svg
from vaezoo.evaluation.report import Detail, Metric, Report

K_CURVE = Detail([-9.0, -8.0, -7.5], ("k",), (("1", "5", "50"),), "nats per image", [0.3, 0.2, 0.1])
IMPORTANCES = Detail([[0.9, 0.1], [0.0, 0.5], [0.2, 0.4]], ("dimension", "factor"), ((), ("x", "y")))
USAGE = Detail([1.0, 0.0, 7.0, 4.0], ("code",), (), "positions")
CLASSES = Detail([0.3, 0.7], ("factor",), (("shape", "scale"),), "accuracy", [0.1, 0.2])
RATES = Detail([3.0, 1.0, 2.0], ("dimension",), (), "nats", [0.3, 0.1, 0.2])
SIGNED = Detail([[1.0, -2.0]], ("dimension", "dimension"), (), "correlation")
MANY = Detail(np.arange(100.0).tolist(), ("dimension",))


def texts(figure: Figure) -> list[str]:
    """All that is written in a figure, as its SVG has it."""
    root = ElementTree.fromstring(svg(figure, "a label", "p"))
    return ["".join(element.itertext()) for element in root.iter("text")]


def test_numbers_as_labels_are_a_line_over_them() -> None:
    axes = draw(K_CURVE).axes[0]
    x, y = axes.lines[0].get_data()
    assert list(x) == [1, 5, 50]
    assert list(y) == K_CURVE.values
    assert axes.get_xscale() == "log"
    segments = axes.collections[0].get_segments()
    for segment, value, error in zip(segments, K_CURVE.values, K_CURVE.se or []):
        assert segment[:, 1].tolist() == pytest.approx([value - error, value + error])


def test_names_as_labels_are_bars() -> None:
    axes = draw(CLASSES, "a title").axes[0]
    assert [bar.get_width() for bar in axes.patches] == CLASSES.values
    assert {"shape", "scale", "accuracy", "factor", "a title"} <= set(texts(axes.figure))


def test_numbered_values_are_bars_in_their_order() -> None:
    axes = draw(RATES).axes[0]
    assert [bar.get_height() for bar in axes.patches] == RATES.values
    assert draw(MANY).axes[0].patches[0].get_data().values.tolist() == MANY.values


def test_codes_fall_by_their_use() -> None:
    axes = draw(USAGE).axes[0]
    assert axes.patches[0].get_data().values.tolist() == [7, 4, 1, 0]
    assert axes.lines[0].get_ydata()[0] == 3  # equal use
    assert "codes, most used first (3 of 4 are used)" in texts(axes.figure)


def test_two_axes_are_a_heat_map() -> None:
    figure = draw(IMPORTANCES)
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().tolist() == IMPORTANCES.values
    assert mesh.get_clim() == (0, 0.9)
    assert {"x", "y", "0", "1", "2", "dimension", "factor", "0.9", "0.5"} <= set(texts(figure))
    assert figure.axes[0].yaxis_inverted()  # the first row is above
    assert draw(SIGNED).axes[0].collections[0].get_clim() == (-2, 2)
    assert draw(Detail([[0.0, 0.0]], ("a", "b"))).axes[0].collections[0].get_clim() == (0, 1)


@pytest.mark.parametrize("detail", [K_CURVE, IMPORTANCES, USAGE, CLASSES, RATES, SIGNED, MANY])
def test_charts_are_elements_that_stand_alone(detail: Detail) -> None:
    text = svg(draw(detail), 'a "label" <', "p7")
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"] == 'a "label" <'
    assert "http" not in text
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids)) > 0
    assert all(name.startswith("p7-") for name in ids)
    for element in root.iter():
        for value in element.attrib.values():
            if "#p7" in value:
                assert value.removeprefix("url(").rstrip(")").removeprefix("#") in ids
    assert "currentColor" in text
    assert svg(draw(detail), 'a "label" <', "p7") == text  # no date, no random names


def test_names_are_taken_as_they_are() -> None:
    strange = ("$x", "<script>alert(1)</script>", "a & b", "$\\broken{$")
    detail = Detail([1.0, 2.0, 3.0, 4.0], ("<i>$",), (strange,), "$\\%$")
    figure = draw(detail, "$title$ </svg>")
    assert {*strange, "<i>$", "$\\%$", "$title$ </svg>"} <= set(texts(figure))
    assert "<script" not in svg(figure, "", "p")
    wide = Detail([[1.0, 2.0, 3.0, 4.0]], ("<i>$", "b"), (("$",), strange))
    assert {*strange, "<i>$", "$"} <= set(texts(draw(wide)))


def test_large_details_stay_small_pages() -> None:
    values = np.random.default_rng(0).random((128, 128)).tolist()
    assert len(svg(draw(Detail(values, ("code", "code"))), "", "p")) < 300_000
    usage = Detail(np.arange(8192.0).tolist(), ("code",))
    assert len(svg(draw(usage), "", "p")) < 600_000


def test_a_detail_without_values() -> None:
    with pytest.raises(VaezooError, match="without values"):
        draw(Detail([], ("k",)))


# --- Rate and distortion --------------------------------------------------------------------------------


def report(rate: float, distortion: float, se: float | None = None) -> Report:
    metrics = {
        "likelihood/rate": Metric(rate, 5, "", se),
        "likelihood/distortion": Metric(distortion, 5, "", se),
    }
    return Report({}, metrics, {})


def test_rate_and_distortion_are_where_the_reports_say() -> None:
    no_prior = Report({}, {"likelihood/distortion": Metric(3.0, 5, "")}, {})
    figure = rate_distortion(
        {"a": report(10, 80, 2.0), "$b": [report(20, 70), report(24, 76)], "without": no_prior}
    )
    axes = figure.axes[0]
    points = [container[0].get_xydata()[0].tolist() for container in axes.containers]
    assert points == [[10, 80], [22, 73]]
    across = [container[2][0].get_segments()[0][:, 0] for container in axes.containers]
    assert across[0].tolist() == pytest.approx([8, 12])  # standard error of one
    deviation = np.std([20, 24], ddof=1)
    assert across[1].tolist() == pytest.approx([22 - deviation, 22 + deviation])
    assert {"a", "$b"} <= set(texts(figure))
    assert "without" not in texts(figure)


def test_lines_of_equal_elbo() -> None:
    axes = rate_distortion({"a": report(10, 80), "b": report(30, 65)}).axes[0]
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]
    named = {float(text.get_text().split()[1]) for text in axes.texts if text.get_text().startswith("ELBO")}
    totals = set()
    for line in lines:
        x, y = line.get_data()
        assert x[0] + y[0] == pytest.approx(x[1] + y[1])
        totals.add(-round(float(x[0] + y[0]), 6))
    assert len(lines) >= 3
    assert named <= totals
    assert len(named) >= 2
    rate_distortion({"a": report(10, 80)})  # one point


def test_reports_without_a_rate() -> None:
    with pytest.raises(VaezooError, match="no report has a rate"):
        rate_distortion({"a": Report({}, {}, {})})
