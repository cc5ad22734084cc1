"""Charts of reports, with matplotlib: the details behind the metrics, drawn by their shape, and rate against
distortion. Each function returns a `Figure`; they are as wide as a telephone, 5 inches."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vaezoo.errors import VaezooError
from vaezoo.evaluation.report import Detail, Report
from vaezoo.evaluation.side_by_side import Reports, Sample

WIDTH = 5.0  # inches
INK = "#010203"  # of text and axes; becomes the page's own colour of text, light or dark
BLUE = "#0072B2"
#: Told apart with every kind of colour vision (Okabe & Ito 2008).
COLOURS = (BLUE, "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#F0E442")
MARKERS = "osD^vP*X"

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "vaezoo",
}

MOST_BARS = 60
MOST_NUMBERS = 150  # cells of a heat map that have room for their number
MOST_CELLS = 2500  # of a heat map, as vectors
PLAIN: dict[str, Any] = {"parse_math": False}  # a $ in a name is a $


def draw(detail: Detail, title: str = "") -> Figure:
    """Two axes: a heat map. One: a line over numbers, the usage of codes, bars over anything else."""
    if not len(detail.values):
        raise VaezooError("a detail without values cannot be drawn")
    values = np.asarray(detail.values, dtype=np.float64)
    with matplotlib.rc_context(STYLE):
        if values.ndim == 2:
            figure = _heat_map(detail, values)
        elif (positions := _positions(detail)) is not None:
            figure = _line(detail, values, positions)
        elif detail.axes == ("code",):
            figure = _usage(detail, values)
        else:
            figure = _bars(detail, values)
        if title:
            figure.axes[0].set_title(title, fontsize=9, **PLAIN)
    return figure


def _names(detail: Detail, axis: int) -> tuple[str, ...]:
    """Names along an axis, () where there are none."""
    return detail.labels[axis] if axis < len(detail.labels) else ()


def _positions(detail: Detail) -> NDArray[np.float64] | None:
    """The labels as numbers, if that is what they are, and in rising order."""
    try:
        positions = np.asarray([float(name) for name in _names(detail, 0)])
    except ValueError:
        return None
    return positions if len(positions) > 1 and bool((np.diff(positions) > 0).all()) else None


def _axes(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _line(detail: Detail, values: NDArray[np.float64], positions: NDArray[np.float64]) -> Figure:
    figure, axes = _axes(2.6)
    axes.errorbar(positions, values, yerr=detail.se, color=BLUE, marker="o", markersize=4, capsize=3)
    if positions[0] > 0 and positions[-1] / positions[0] >= 20:
        axes.set_xscale("log")
        axes.set_xticks(positions, _names(detail, 0), **PLAIN)
        axes.minorticks_off()
    axes.set_xlabel(detail.axes[0], **PLAIN)
    axes.set_ylabel(detail.unit, **PLAIN)
    return figure


def _usage(detail: Detail, values: NDArray[np.float64]) -> Figure:
    """Falling, beside the level of equal use, since the number of a code says nothing."""
    figure, axes = _axes(2.6)
    edges = np.arange(len(values) + 1)
    axes.stairs(np.sort(values)[::-1], edges, fill=True, color=BLUE)
    axes.axhline(values.mean(), color=INK, linestyle="--", linewidth=1)
    axes.annotate("equal use", (len(values), values.mean()), ha="right", va="bottom", fontsize=8)
    used = int((values > 0).sum())
    axes.set_xlabel(f"codes, most used first ({used} of {len(values)} are used)")
    axes.set_ylabel(detail.unit, **PLAIN)
    axes.margins(x=0)
    return figure


def _bars(detail: Detail, values: NDArray[np.float64]) -> Figure:
    """Across where they have names, upright where they are numbered, without gaps where there are many."""
    names = _names(detail, 0)
    if names and len(names) <= MOST_BARS:
        figure, axes = _axes(0.8 + 0.22 * len(names))
        axes.barh(range(len(values)), values, xerr=detail.se, color=BLUE, ecolor=INK, capsize=2)
        axes.set_yticks(range(len(values)), names, **PLAIN)
        axes.invert_yaxis()
        axes.set_ylabel(detail.axes[0], **PLAIN)
        axes.set_xlabel(detail.unit, **PLAIN)
        return figure
    figure, axes = _axes(2.6)
    if len(values) <= MOST_BARS:
        axes.bar(range(len(values)), values, yerr=detail.se, color=BLUE, ecolor=INK, capsize=2)
    else:
        axes.stairs(values, np.arange(len(values) + 1) - 0.5, fill=True, color=BLUE)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(detail.axes[0], **PLAIN)
    axes.set_ylabel(detail.unit, **PLAIN)
    return figure


def _heat_map(detail: Detail, values: NDArray[np.float64]) -> Figure:
    """Cells with their numbers where there is room. Values of both signs: red and blue around a white 0."""
    rows, columns = values.shape
    figure, axes = _axes(min(5.0, max(1.8, 1.1 + 0.26 * rows)))
    signed = values.min() < 0
    top = float(np.abs(values).max()) or 1.0
    colours = matplotlib.colormaps["RdBu_r" if signed else "cividis"]
    low = -top if signed else 0.0
    mesh = axes.pcolormesh(
        values,
        cmap=colours,
        vmin=low,
        vmax=top,
        rasterized=values.size > MOST_CELLS,
        edgecolors="face",
        linewidth=0.2,
    )
    axes.invert_yaxis()
    for axis, count, most, ticks, label in (
        (0, rows, 24, axes.set_yticks, axes.set_ylabel),
        (1, columns, 16, axes.set_xticks, axes.set_xlabel),
    ):
        names = _names(detail, axis) or tuple(map(str, range(count)))
        step = -(-count // most)
        ticks([i + 0.5 for i in range(0, count, step)], names[::step], **PLAIN)
        label(detail.axes[axis], **PLAIN)
    if sum(map(len, _names(detail, 1))) > 40:
        for text in axes.get_xticklabels():
            text.set(rotation=35, ha="right", rotation_mode="anchor")
    if values.size <= MOST_NUMBERS and columns <= 12:
        for (i, j), value in np.ndenumerate(values):
            red, green, blue, _ = colours((value - low) / (top - low))
            dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
            colour = "white" if dark else "black"
            axes.text(j + 0.5, i + 0.5, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    bar.set_label(detail.unit, **PLAIN)
    return figure


def rate_distortion(reports: Reports) -> Figure:
    """Distortion over rate, nats per image, a point for each model: the mean over its reports, with their
    standard deviation, or the standard error of a single one. Along a dashed line the ELBO is the same (Alemi
    et al. 2018).

    Raises:
        VaezooError: no report has both a rate and a distortion.
    """
    points = {}
    for name, group in reports.items():
        each: Sequence[Report] = [group] if isinstance(group, Report) else group
        pairs = [
            [r[m] for m in ("likelihood/rate", "likelihood/distortion")]
            for r in each
            if "likelihood/rate" in r
        ]
        if pairs:
            rates, distortions = zip(*pairs)
            points[name] = Sample.of(rates), Sample.of(distortions)
    if not points:
        raise VaezooError(
            "no report has a rate and a distortion, which evaluate measures on the axis 'likelihood'"
        )
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.6)
        for i, (name, (rate, distortion)) in enumerate(points.items()):
            errors = {"xerr": _error(rate), "yerr": _error(distortion)}
            look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axes.errorbar(rate.mean, distortion.mean, **errors, **look, markersize=6, capsize=2, linestyle="")
            axes.annotate(
                name, (rate.mean, distortion.mean), (6, 4), textcoords="offset points", fontsize=8, **PLAIN
            )
        axes.margins(0.2)
        _iso_elbo(axes)
        axes.set_xlabel("rate, nats per image")
        axes.set_ylabel("distortion, nats per image")
    return figure


def _error(sample: Sample) -> float | None:
    return sample.se[0] if sample.spread is None else sample.spread


def _iso_elbo(axes: Any) -> None:
    """Lines of equal rate + distortion = -ELBO, each with its ELBO, across what the axes show."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    ticks = matplotlib.ticker.MaxNLocator(6).tick_values(left + bottom, right + top)
    for total in ticks:
        start, end = max(left, total - top), min(right, total - bottom)
        if start >= end:
            continue
        axes.plot(
            [start, end], [total - start, total - end], color=INK, linewidth=0.6, linestyle="--", alpha=0.5
        )
        if total - start < bottom + 0.08 * (top - bottom):
            continue  # there is no room for its number
        axes.annotate(
            f"ELBO {-total:.5g}",
            (start, total - start),
            (2, -2),
            textcoords="offset points",
            fontsize=7,
            va="top",
        )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def svg(figure: Figure, label: str, prefix: str) -> str:
    """A figure as an <svg> element for a page: as wide as there is room, text in the page's colour.

    Args:
        figure: drawn by this module.
        label: what a screen reader says.
        prefix: begins every id, so that several figures do not share any.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(
        r"<style.*?</style>", "", text, count=1, flags=re.DOTALL
    )  # it would hold for the whole page
    text = (
        re.sub(r"font-family: [^;\"]*;", "", text).replace("xlink:href", "href").replace(INK, "currentColor")
    )
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    _, _, rest = text.partition(">")
    width, height = 72 * figure.get_size_inches()
    box = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg role="img" aria-label="{escape(label)}" {box} stroke-linejoin="round">{rest.strip()}'
