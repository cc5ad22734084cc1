"""Several models in one table, each by one run or by several seeds: which differences are more than noise?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.special import stdtrit
from tabulate import tabulate

from vaezoo.errors import VaezooError, unknown
from vaezoo.evaluation.report import ARROWS, Better, Metric, Report, with_error

CONFIDENCE = 0.95
SCHEMA = 1

#: "noise": the interval of the difference from the reference holds 0. "differs": it does not, and neither way
#: is better. "unknown": there is no interval. "" where there is no reference.
Verdict = Literal["best", "baseline", "noise", "better", "worse", "differs", "unknown", ""]

Reports: TypeAlias = Mapping[str, Report | Sequence[Report]]

#: What reports must have in common, or their numbers are about different things.
IN_COMMON = ("split", "n", "samples", "likelihood_n", "features", "protocol")
DATA_IN_COMMON = ("fingerprint", "binarize")


@dataclass(frozen=True)
class Sample:
    """One metric of one model.

    Attributes:
        values: one for each seed that has it, at least one.
        se: the standard error of each.
    """

    values: tuple[float, ...]
    se: tuple[float | None, ...]

    @classmethod
    def of(cls, metrics: Sequence[Metric]) -> Sample:
        return cls(tuple(m.value for m in metrics), tuple(m.se for m in metrics))

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1 in the denominator); None for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return with_error(self.mean, self.se[0] if self.spread is None else self.spread)


def difference(a: Sample, b: Sample) -> tuple[float, float | None]:
    """Difference of the means, a - b, and half the width of its 95 % interval; None where there is no error.

    - Both with several seeds: Welch's t interval (Welch 1947), which assumes neither equal spreads nor pairs.
    - One with a single seed: it is taken to spread as the other one does, s (1 + 1/n)^1/2 with n - 1
      degrees of freedom.
    - Both with a single seed: a normal interval from the two standard errors. It knows nothing of the spread
      over seeds.
    """
    gap = a.mean - b.mean
    m, n = len(a.values), len(b.values)
    if a.spread is not None and b.spread is not None:
        variances = a.spread**2 / m, b.spread**2 / n
        total = sum(variances)
        if not total:
            return gap, 0.0
        freedom = total**2 / (variances[0] ** 2 / (m - 1) + variances[1] ** 2 / (n - 1))
        return gap, _t(freedom) * math.sqrt(total)
    spread, count = (a.spread, m) if b.spread is None else (b.spread, n)
    if spread is not None:
        return gap, _t(count - 1) * spread * math.sqrt(1 + 1 / count)
    if a.se[0] is None or b.se[0] is None:
        return gap, None
    return gap, _t(math.inf) * math.hypot(a.se[0], b.se[0])


def _t(freedom: float) -> float:
    """The quantile of Student's t that leaves (1 - CONFIDENCE) / 2 above it."""
    return float(stdtrit(min(freedom, 1e9), (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Cell:
    """One metric of one model, and how it stands to the reference: the best model, or the baseline.

    Attributes:
        sample: the values.
        verdict: see `Verdict`.
        gap: mean minus the reference's mean; None where there is no reference.
        half_width: of the 95 % interval of the gap; None where there is no error.
    """

    sample: Sample
    verdict: Verdict = ""
    gap: float | None = None
    half_width: float | None = None


@dataclass(frozen=True)
class Row:
    """One metric of all the models that have it."""

    metric: str
    unit: str
    better: Better | None
    cells: dict[str, Cell]


@dataclass(frozen=True)
class SideBySide:
    """The comparison of several models.

    Attributes:
        rows: one for each metric.
        seeds: number of reports, by model.
        baseline: what the others are compared with; None: the best model of each row.
    """

    rows: tuple[Row, ...]
    seeds: dict[str, int]
    baseline: str | None = None

    def table(self, style: str = "simple") -> str:
        """As text, in a style of `tabulate`: one row for each metric, a dash where it does not apply."""
        strong = ("**{}**" if style == "pipe" else "{} *").format
        rows = []
        for row in self.rows:
            cells = []
            for name in self.seeds:
                cell = row.cells.get(name)
                text = "-" if cell is None else str(cell.sample)
                if cell is not None:
                    text = (
                        strong(text) if cell.verdict == "best" else f"{text} {MARKS[cell.verdict]}".rstrip()
                    )
                cells.append(text)
            rows.append([f"{row.metric} {ARROWS[row.better]}".rstrip(), *cells, row.unit])
        return tabulate(rows, ["metric", *self.titles(), "unit"], style, disable_numparse=True)

    def titles(self) -> list[str]:
        """The heads of the columns."""
        if not self.by_seeds:
            return list(self.seeds)
        return [f"{name} ({n} {'seed' if n == 1 else 'seeds'})" for name, n in self.seeds.items()]

    @property
    def by_seeds(self) -> bool:
        """Some model has more than one seed."""
        return max(self.seeds.values(), default=0) > 1

    def caption(self, best: str = "*") -> str:
        """What stands in the cells, what the marks mean, and the rule. `best` is how the best is marked."""
        counts = set(self.seeds.values())
        shown = []
        if self.by_seeds:
            shown.append("mean ± standard deviation over seeds")
        if 1 in counts:
            shown.append(
                "value ± standard error of one run" + (", of models with one seed" if self.by_seeds else "")
            )
        what = "; ".join(shown).capitalize() + "."
        if len(self.seeds) == 1:
            return what
        rules = []
        if sum(n > 1 for n in self.seeds.values()) > 1:
            rules.append("Welch's t interval over seeds, unpaired")
        if self.by_seeds and 1 in counts:
            rules.append("a model of one seed is taken to spread as the other")
        if sum(n == 1 for n in self.seeds.values()) > 1:
            rules.append(
                "between single runs a normal interval from the two standard errors, which knows nothing "
                "of the spread over seeds"
            )
        marks = (
            f"{best}: the best mean; ≈: within noise of it; −: worse"
            if self.baseline is None
            else f"Beside the baseline, {self.baseline}, ≈: within noise of it; +: better; −: worse; ≠: other"
        )
        parts = [
            what,
            f"{marks}; ?: no error is known, so nothing can be said.",
            f"Within noise: the {CONFIDENCE:.0%} interval of the difference holds 0 ({'; '.join(rules)}).",
            "Each difference is judged by itself, without a correction for their number: of twenty between "
            "equals one will look real.",
        ]
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: every row with the values of every seed, their mean, spread, verdict and interval."""
        rows = []
        for row in self.rows:
            cells = {
                name: {
                    "values": list(cell.sample.values),
                    "se": list(cell.sample.se),
                    "mean": cell.sample.mean,
                    "spread": cell.sample.spread,
                    "verdict": cell.verdict,
                    "difference": cell.gap,
                    "half_width": cell.half_width,
                }
                for name, cell in row.cells.items()
            }
            rows.append({"metric": row.metric, "unit": row.unit, "better": row.better, "cells": cells})
        return {
            "schema": SCHEMA,
            "seeds": self.seeds,
            "baseline": self.baseline,
            "confidence": CONFIDENCE,
            "rule": self.caption("best"),
            "rows": rows,
        }


#: After the value; the best one is set apart by its style.
MARKS: dict[Verdict, str] = {
    "best": "",
    "baseline": "",
    "noise": "≈",
    "better": "+",
    "worse": "−",
    "differs": "≠",
    "unknown": "?",
    "": "",
}


def side_by_side(reports: Reports, baseline: str | None = None) -> SideBySide:
    """Put reports into one table and judge every difference from the best model, or from a baseline.

    Args:
        reports: by model, a report or one for each seed.
        baseline: one of the models; None: the one with the best mean, metric by metric.

    Raises:
        VaezooError: no reports, an unknown baseline, or reports of other images, splits or counts.
    """
    groups = {name: [r] if isinstance(r, Report) else list(r) for name, r in reports.items()}
    if not groups or not all(groups.values()):
        raise VaezooError("a comparison needs at least one report of every model")
    if baseline is not None and baseline not in groups:
        raise VaezooError(unknown("baseline", baseline, groups))
    check_comparable(groups)
    every = [report for group in groups.values() for report in group]
    rows = []
    for metric in dict.fromkeys(name for report in every for name in report.metrics):
        found = {name: [r[metric] for r in group if metric in r] for name, group in groups.items()}
        first = next(m for metrics in found.values() for m in metrics)
        samples = {name: Sample.of(metrics) for name, metrics in found.items() if metrics}
        rows.append(Row(metric, first.unit, first.better, _judge(samples, first.better, baseline)))
    return SideBySide(tuple(rows), {name: len(group) for name, group in groups.items()}, baseline)


def _judge(samples: dict[str, Sample], better: Better | None, baseline: str | None) -> dict[str, Cell]:
    """Each sample beside the reference."""
    sign = {"higher": 1, "lower": -1, None: 0}[better]
    reference = baseline
    if baseline is None and sign:
        reference = max(samples, key=lambda name: sign * samples[name].mean)
    if reference not in samples:
        return {name: Cell(sample) for name, sample in samples.items()}
    cells = {}
    for name, sample in samples.items():
        gap, half_width = difference(sample, samples[reference])
        verdict: Verdict
        if name == reference:
            cells[name] = Cell(sample, "best" if baseline is None else "baseline", 0.0)
            continue
        if gap == 0 or (half_width is not None and abs(gap) <= half_width):
            verdict = "noise"
        elif half_width is None:
            verdict = "unknown"
        elif not sign:
            verdict = "differs"
        else:
            verdict = "better" if sign * gap > 0 else "worse"
        cells[name] = Cell(sample, verdict, gap, half_width)
    return cells


def check_comparable(groups: Mapping[str, Sequence[Report]]) -> None:
    """Raise unless all reports share images, split, features and counts; what a header lacks is not asked."""
    seen: dict[str, tuple[str, Any]] = {}
    for name, group in groups.items():
        for report in group:
            data = report.header.get("data", {})
            facts = {key: report.header[key] for key in IN_COMMON if key in report.header}
            facts |= {f"data {key}": data[key] for key in DATA_IN_COMMON if key in data}
            for key, value in facts.items():
                other, expected = seen.setdefault(key, (name, value))
                if value != expected:
                    raise VaezooError(
                        f"reports of {other} and {name} cannot be compared: {key} is {expected!r} and "
                        f"{value!r}"
                    )
