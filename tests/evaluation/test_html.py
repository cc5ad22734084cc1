from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vaezoo.evaluation.html import comparison_page
from vaezoo.evaluation.report import INDEX, Detail, Metric, Report, Results, Skipped
from vaezoo.evaluation.side_by_side import side_by_side

EVIL = '<script>alert("x")</script>\'"&'
VOID = {"meta", "img", "br", "hr", "input", "link"}
PNG = b"\x89PNG not really"


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text; an error where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without its start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture
def report() -> Report:
    header = {
        "model": {"name": EVIL, "config": {"network": EVIL, "latent_dim": 3}},
        "data": {"name": "digits", "fingerprint": "abc123"},
        "split": "test",
        "seed": 5,
        "versions": {"torch": "2.9"},
    }
    results: Results = {
        "likelihood/elbo": Metric(-99.456, 10, "nats per image", 0.5, "higher", EVIL),
        "likelihood/k_curve": Detail([-9.0, -8.0], ("k",), (("1", "5"),), EVIL, None, EVIL),
        f"{EVIL}/x": Metric(1.0, 10, EVIL),
        f"{EVIL}/heat": Detail([[1.0, 2.0]], (EVIL, "b"), ((EVIL,), ()), EVIL),
        "latents/y": Skipped(EVIL),
    }
    return Report.of(header, results)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    return {EVIL: path}


def pages(report: Report, pictures: dict[str, Path]) -> list[str]:
    reports = {EVIL: report, "b": [report, report]}
    links = {EVIL: f"{EVIL}/report.html"}
    return [
        report.to_html(pictures),
        comparison_page(EVIL, reports, side_by_side(reports), pictures, links),
    ]


def test_pages_are_well_formed_and_nothing_runs(report: Report, pictures: dict[str, Path]) -> None:
    for text in pages(report, pictures):
        page = Parsed(text)
        assert text.startswith("<!DOCTYPE html>")
        assert "script" not in page.tags
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
        assert EVIL in page.text  # it is shown as it is


def test_pages_stand_alone(report: Report, pictures: dict[str, Path]) -> None:
    for text in pages(report, pictures):
        assert "http://" not in text
        assert "https://" not in text
        assert "@import" not in text
        for tag, attributes in Parsed(text).elements:
            assert tag not in ("link", "iframe", "object", "embed", "base")
            for name in ("src", "href", "xlink:href"):
                target = attributes.get(name)
                if target is not None and tag != "a":
                    assert target.startswith(("data:image/png;base64,", "#"))


def test_pages_suit_telephones_and_the_dark(report: Report) -> None:
    text = report.to_html()
    assert "prefers-color-scheme: dark" in text
    page = Parsed(text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    assert page.tags.count("svg") == 2
    for tag, attributes in page.elements:
        if tag == "svg":
            assert "width" not in attributes  # the page's own


def test_everything_is_shown(report: Report, pictures: dict[str, Path]) -> None:
    text = Parsed(report.to_html(pictures)).text
    for part in (
        "-99.46 ± 0.50",
        "elbo ↑",
        "nats per image",
        "abc123",
        "2.9",
        "latent_dim",
        "k_curve",
        "heat",
    ):
        assert part in text
    (image,) = [a for tag, a in Parsed(report.to_html(pictures)).elements if tag == "img"]
    assert base64.b64decode((image["src"] or "").partition(",")[2]) == PNG
    titles = re.findall(r"<h2>(.*?)</h2>", report.to_html(pictures))
    assert len(titles) == 4  # three axes and the pictures


def test_ids_of_a_page_are_unique(report: Report) -> None:
    ids = [attributes["id"] for _, attributes in Parsed(report.to_html()).elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def test_an_empty_report_is_a_page() -> None:
    Parsed(Report({}, {}, {}).to_html())


def test_a_comparison_marks_the_best_and_what_is_within_noise() -> None:
    def of(value: float) -> Report:
        return Report({}, {"a/x": Metric(value, 5, "", 0.1, "lower")}, {})

    reports: dict[str, Any] = {"a": of(1.0), "b": of(1.1), "c": of(3.0)}
    text = comparison_page("t", reports, side_by_side(reports))
    assert text.count("<strong>1.00 ± 0.10</strong>") == text.count("<strong>") == 1
    assert "1.10 ± 0.10 ≈" in text
    assert "3.00 ± 0.10 −" in text
    assert "bold: the best mean" in text
    assert "no report has a rate" in text  # in the place of the picture


def test_pages_of_a_folder(report: Report, pictures: dict[str, Path], tmp_path: Path) -> None:
    report.save_pages(tmp_path, pictures)
    assert Report.load(tmp_path / "report.json") == report
    assert (tmp_path / "report.html").read_text() == report.to_html(pictures)
    assert (tmp_path / "report.md").read_text() == report.to_markdown()


def test_numbers_of_images_are_not_drawn_as_sizes() -> None:
    details: Results = {"a/sizes": Detail([1.0, 2.0], ("x",)), "a/nearest": Detail([7.0], ("x",), unit=INDEX)}
    page = Parsed(Report.of({}, details).to_html())
    assert page.tags.count("svg") == 1
    assert "nearest" not in page.text
