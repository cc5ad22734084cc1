"""Reports and comparisons as pages that stand alone: one file each, which fetches and runs nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from vaezoo.errors import VaezooError
from vaezoo.evaluation.charts import draw, rate_distortion, svg
from vaezoo.evaluation.report import ARROWS, INDEX, Detail, Metric, Report, by_reason, with_error
from vaezoo.evaluation.side_by_side import MARKS, Cell, Reports, SideBySide

#: Colours follow the reader's choice of light or dark; wide tables and charts scroll by themselves.
CSS = """
:root { color-scheme: light dark; --line: #d0d5da; --muted: #5b6470; --tint: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --muted: #a0a8b2; --tint: #1c2026; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; }
tr { border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
small, figcaption, .muted { color: var(--muted); font-size: .85em; }
td small { display: block; }
code { background: var(--tint); padding: 0 .2em; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.charts { gap: 1.5rem; }
figure { margin: 1rem 0; } svg { width: 100%; max-width: 34rem; height: auto; }
img { max-width: 100%; height: auto; }
"""


def report_page(report: Report, pictures: Mapping[str, Path]) -> str:
    """The header, a section for each axis with its table, what was skipped and its charts, and pictures."""
    names = [*report.metrics, *report.skipped, *report.details]
    axes = list(dict.fromkeys(name.split("/")[0] for name in names))
    body = [_header(report.header)]
    for number, axis in enumerate(axes):
        body += [f"<h2>{escape(axis)}</h2>", _metrics(_of(axis, report.metrics))]
        body.append(_skipped(_of(axis, report.skipped)))
        body.append(_details(_of(axis, report.details), f"chart{number}"))
    if pictures:
        body += ["<h2>pictures</h2>", *(_picture(title, path) for title, path in pictures.items())]
    return page(report.title, body)


def comparison_page(
    title: str,
    reports: Reports,
    table: SideBySide,
    pictures: Mapping[str, Path] | None = None,
    links: Mapping[str, str] | None = None,
) -> str:
    """The table with its rule, rate against distortion, pictures, and links to the pages of the runs.

    Args:
        title: of the page.
        reports: by model.
        table: their comparison.
        pictures: PNG files by title, which become part of the page.
        links: where the page of each run is, by its title.
    """
    head = [_th("metric"), *(_th(name, "number") for name in table.titles()), _th("unit")]
    rows = []
    for row in table.rows:
        cells = [_cell(row.cells.get(name)) for name in table.seeds]
        rows.append([_td(f"{row.metric} {ARROWS[row.better]}"), *cells, _td(row.unit)])
    first = next(r if isinstance(r, Report) else r[0] for r in reports.values())
    facts = {key: value for key, value in first.header.items() if key not in ("model", "seed", "axes")}
    body = [_header(facts), _table(head, rows), f"<p class=muted>{escape(table.caption('bold'))}</p>"]
    try:
        body.append(_figure(svg(rate_distortion(reports), "rate and distortion", "rd"), RATE_DISTORTION))
    except VaezooError as error:
        body.append(f"<p class=muted>{escape(str(error))}</p>")
    body += [_picture(name, path) for name, path in (pictures or {}).items()]
    items = [
        f'<li><a href="{escape(target)}">{escape(name)}</a></li>' for name, target in (links or {}).items()
    ]
    if items:
        body += ["<h2>runs</h2>", "<ul>", *items, "</ul>"]
    return page(title, body)


RATE_DISTORTION = (
    "Distortion over rate; along a dashed line the ELBO is the same. "
    "Points can be compared under one likelihood only."
)


def page(title: str, body: Iterable[str]) -> str:
    """A whole page. `body`: elements, already escaped."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{CSS}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *filter(None, body),
            "</body></html>\n",
        ]
    )


def _of(axis: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of one axis, by the rest of their names."""
    return {name[len(axis) + 1 :]: r for name, r in results.items() if name.split("/")[0] == axis}


def _header(header: Mapping[str, Any]) -> str:
    """One row for each entry; a dictionary's own entries beside each other."""
    rows = []
    for key, value in header.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        shown = [f"{escape(str(k))} <code>{escape(_plain(v))}</code>".lstrip() for k, v in parts]
        rows.append([_td(key), f"<td>{', '.join(shown)}</td>"])
    return _table([], rows)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _metrics(metrics: Mapping[str, Metric]) -> str:
    rows = []
    for name, m in metrics.items():
        label = f"<td>{escape(name)} {ARROWS[m.better]}{_small(m.note)}</td>"
        rows.append([label, _td(with_error(m.value, m.se), "number"), _td(m.unit), _td(m.n, "number")])
    return (
        _table([_th("metric"), _th("value ± se", "number"), _th("unit"), _th("n", "number")], rows)
        if rows
        else ""
    )


def _skipped(skipped: Mapping[str, str]) -> str:
    rows = [[_td(", ".join(names)), _td(reason)] for reason, names in by_reason(skipped).items()]
    return _table([_th("not measured"), _th("because")], rows) if rows else ""


def _details(details: Mapping[str, Detail], prefix: str) -> str:
    figures = []
    drawn = {name: detail for name, detail in details.items() if detail.unit != INDEX}
    for number, (name, detail) in enumerate(drawn.items()):
        caption = ": ".join(filter(None, [name, detail.note]))
        figures.append(_figure(svg(draw(detail), name, f"{prefix}-{number}"), caption))
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return _td("-", "number")
    text = escape(str(cell.sample))
    marked = (
        f"<strong>{text}</strong>" if cell.verdict == "best" else f"{text} {MARKS[cell.verdict]}".rstrip()
    )
    return f'<td class="number">{marked}</td>'


def _picture(title: str, path: Path) -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return _figure(f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">', title)


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def _td(value: Any, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(str(value))}</td>' if kind else f"<td>{escape(str(value))}</td>"


def _th(title: str, kind: str = "") -> str:
    return _td(title, kind).replace("<td", "<th", 1).replace("</td>", "</th>")


def _table(head: Iterable[str], rows: Iterable[list[str]]) -> str:
    """A row of <th> elements and rows of <td> elements."""
    lines = [f"<tr>{''.join(row)}</tr>" for row in ([*head], *rows) if row]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'
