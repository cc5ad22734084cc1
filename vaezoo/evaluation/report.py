"""What an evaluation says: numbers with their errors, and what could not be measured, with the reason."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from vaezoo.errors import VaezooError, unknown

#: Unit of a detail whose values are numbers of images, which no chart of sizes can show.
INDEX = "index"

#: 2 added `details`; a report of schema 1 loads with none.
SCHEMA = 2

Better = Literal["higher", "lower"]
ARROWS: dict[Better | None, str] = {"higher": "↑", "lower": "↓", None: ""}
Nested: TypeAlias = list[float] | list[list[float]]


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        value: finite.
        se: standard error of the value, over the `n` that it was measured on; None where there is none.
        n: how many images (or draws, or positions, see `note`) it was measured on.
        unit: "nats per image", "dB", ...
        better: which way is better; None where neither is.
        note: how it was measured, as far as the name does not say it.
    """

    value: float
    n: int
    unit: str
    se: float | None = None
    better: Better | None = None
    note: str = ""


@dataclass(frozen=True)
class Skipped:
    """A metric that was not measured."""

    reason: str


@dataclass(frozen=True)
class Detail:
    """The numbers behind a metric, along one axis or two, for pictures and for further analysis.

    Attributes:
        values: finite, [n] or [n, m].
        axes: what the indices run over, one name for each axis: ("dimension", "factor").
        labels: names along each axis; () for all, or for one axis, where they are numbered from 0.
        unit: as in `Metric`.
        se: standard errors, of the shape of `values`; None where there are none.
        note: as in `Metric`.

    Raises:
        VaezooError: rows of unequal length, more than two axes, or names or errors of another shape.
    """

    values: Nested
    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...] = ()
    unit: str = ""
    se: Nested | None = None
    note: str = ""

    def __post_init__(self) -> None:
        # JSON knows no tuples; a detail that was loaded is the same as the one that was saved.
        object.__setattr__(self, "axes", tuple(self.axes))
        object.__setattr__(self, "labels", tuple(tuple(names) for names in self.labels))
        shape = _shape(self.values)
        if len(shape) not in (1, 2) or len(shape) != len(self.axes):
            raise VaezooError(f"a detail over {self.axes} has values of shape {shape}")
        if self.labels and tuple(len(names) or n for names, n in zip(self.labels, shape)) != shape:
            raise VaezooError(f"a detail of shape {shape} has labels {self.labels}")
        if self.se is not None and _shape(self.se) != shape:
            raise VaezooError(f"a detail of shape {shape} has standard errors of shape {_shape(self.se)}")

    def finite(self) -> bool:
        """All values, and all standard errors if there are any."""
        return all(np.isfinite(np.asarray(part)).all() for part in (self.values, self.se or []))


def _shape(values: Nested) -> tuple[int, ...]:
    try:
        return np.asarray(values, dtype=np.float64).shape
    except (TypeError, ValueError):
        raise VaezooError("the values of a detail are not numbers in rows of equal length") from None


Result: TypeAlias = Metric | Detail | Skipped
Results = dict[str, Result]


def average(values: Tensor, unit: str, better: Better | None = None, note: str = "") -> Result:
    """Mean over samples with its standard error. values [N], one per sample; skipped if one is not finite."""
    values = values.double()
    n = len(values)
    variance_of_mean = values.var(correction=min(1, n - 1)) / n
    statistics = torch.stack([values.mean(), variance_of_mean, values.isfinite().sum().double()])
    mean, variance, finite = statistics.tolist()  # the one synchronisation
    if finite < n:
        return Skipped(f"{n - int(finite)} of {n} values are not finite")
    return Metric(mean, n, unit, math.sqrt(variance) if n > 1 else None, better, note)


@dataclass(frozen=True)
class Report:
    """The result of `evaluate`.

    Attributes:
        header: what was measured: model and config, data, split, seed, sizes, versions. JSON-able.
        metrics: by "axis/name".
        skipped: the reason, by "axis/name", of every metric that does not apply or has no finite value.
        details: the numbers behind them, by "axis/name".
    """

    header: dict[str, Any]
    metrics: dict[str, Metric]
    skipped: dict[str, str]
    details: dict[str, Detail] = field(default_factory=dict)

    @classmethod
    def of(cls, header: dict[str, Any], results: Mapping[str, Result]) -> Report:
        """Sort results; a value that is not finite is never a metric, nor part of a detail, nor an error."""
        metrics, skipped, details = {}, {}, {}
        for name, result in results.items():
            if isinstance(result, Skipped):
                skipped[name] = result.reason
            elif isinstance(result, Detail):
                if not len(result.values):
                    skipped[name] = "there are no values"
                elif result.finite():
                    details[name] = result
                else:
                    skipped[name] = "some values are not finite"
            elif not math.isfinite(result.value):
                skipped[name] = f"the value is not finite ({result.value})"
            elif result.se is not None and not math.isfinite(result.se):
                note = "; ".join(filter(None, [result.note, "the standard error is not finite"]))
                metrics[name] = replace(result, se=None, note=note)
            else:
                metrics[name] = result
        return cls(header, metrics, skipped, details)

    def __getitem__(self, name: str) -> Metric:
        if name in self.skipped:
            raise VaezooError(f"{name} was not measured: {self.skipped[name]}")
        if name not in self.metrics:
            raise VaezooError(unknown("metric", name, self.metrics))
        return self.metrics[name]

    def __contains__(self, name: str) -> bool:
        return name in self.metrics

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `to_json` writes them."""
        return {
            "schema": SCHEMA,
            "header": self.header,
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            "skipped": self.skipped,
            "details": {name: asdict(detail) for name, detail in self.details.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`."""
        schema = content.get("schema")
        if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
            raise VaezooError(f"a report of schema {schema!r}; this version reads schemas 1 to {SCHEMA}")
        metrics = {name: Metric(**fields) for name, fields in content["metrics"].items()}
        details = {name: Detail(**fields) for name, fields in content.get("details", {}).items()}
        return cls(content["header"], metrics, content["skipped"], details)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Report:
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise VaezooError(f"{path} is not a report of vaezoo: {type(error).__name__}: {error}") from error

    def table(self, style: str = "simple") -> str:
        """The report as text, in a style of `tabulate`."""
        rows = []
        for name, m in self.metrics.items():
            se = "" if m.se is None else f"{m.se:.2g}"
            rows.append([name, f"{m.value:.5g}", se, ARROWS[m.better], m.unit, m.n, m.note])
        headers = ["metric", "value", "± se", "", "unit", "n", "note"]
        width: list[int | None] | None = [None] * 6 + [60] if style == "simple" else None
        blocks = [tabulate(rows, headers, style, disable_numparse=True, maxcolwidths=width)] if rows else []
        if self.skipped:
            skipped = [[", ".join(names), reason] for reason, names in by_reason(self.skipped).items()]
            width = [60, 70] if style == "simple" else None
            blocks.append(tabulate(skipped, ["skipped", "reason"], style, maxcolwidths=width))
        return "\n\n".join(blocks)

    @property
    def title(self) -> str:
        """The model, the data, the split and the prior."""
        model, data = self.header.get("model", {}), self.header.get("data", {})
        prior = f", prior {model['prior']['name']}" if model.get("prior") else ""
        split = self.header.get("split", "")
        return f"{model.get('name', 'model')} on {data.get('name', 'data')} ({split}){prior}"

    def to_markdown(self) -> str:
        """A title, the metrics, and what was skipped."""
        return f"# {self.title}\n\n{self.table('pipe')}\n"

    def to_html(self, pictures: Mapping[str, Path] | None = None) -> str:
        """One page that stands alone: the metrics by axis, the details as charts, and pictures (PNG files, by
        title), which become part of it."""
        from vaezoo.evaluation.html import report_page  # matplotlib is imported only when it draws

        return report_page(self, pictures or {})

    def save_pages(self, folder: str | Path, pictures: Mapping[str, Path] | None = None) -> None:
        """Write report.md, report.html with the pictures in it and, last, report.json into a folder."""
        folder = Path(folder)
        (folder / "report.md").write_text(self.to_markdown(), encoding="utf-8")
        (folder / "report.html").write_text(self.to_html(pictures), encoding="utf-8")
        self.save(folder / "report.json")


def by_reason(skipped: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that were skipped, by their common reason."""
    names: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(name)
    return names


def with_error(value: float, error: float | None) -> str:
    """231.53 ± 0.15: the error to two digits, the value to the same place; four digits without an error."""
    if not error or not math.isfinite(error):
        return f"{value:.4g}"
    if error < 1e-6 or max(abs(value), error) >= 1e6:  # positions would take more room than they say
        return f"{value:.4g} ± {error:.2g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"
