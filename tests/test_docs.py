"""What README and docs say is true: their Python runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import vaezoo
from vaezoo.cli import below, make_parser, parse_options
from vaezoo.config import describe_fields, split_options
from vaezoo.data import DATASETS
from vaezoo.priors import PRIORS
from vaezoo.registry import MODELS
from vaezoo.run import TrainConfig

ROOT = Path(__file__).parents[1]
if not (ROOT / "mkdocs.yml").is_file():
    pytest.skip("the docs are not part of an installed package", allow_module_level=True)

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KOREAN = [path for path in PAGES if path.name.endswith(".ko.md")]
by_path = {"ids": lambda path: path.relative_to(ROOT).as_posix()}
page = pytest.mark.parametrize("page", PAGES, **by_path)

SNIPPET = re.compile(r'^--8<-- "([^":]+):(\w+)"$', re.MULTILINE)
BLOCK = re.compile(
    r"(?:<!-- needs: (?P<needs>\w+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
#: Whatever a browser would fetch from another host.
FETCHED = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="?(?:https?:)?//'
    r'|<link[^>]*rel="?stylesheet"?[^>]*href="?(?:https?:)?//'
)
BUILTIN = [entry for entry, origin, _ in MODELS.status() if origin == "vaezoo"]


@pytest.fixture(scope="module")
def gen_pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_pages", ROOT / "docs" / "gen_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to run in, and registries that forget what is added."""
    monkeypatch.chdir(tmp_path)
    for registry in (MODELS, PRIORS, DATASETS):
        monkeypatch.setattr(registry, "_table", dict(registry._table))


def text_of(path: Path) -> str:
    """A page with the parts of other pages that it includes, as mkdocs shows it."""

    def section(match: re.Match[str]) -> str:
        start, end = (f"<!-- --8<-- [{edge}:{match[2]}] -->" for edge in ("start", "end"))
        return (ROOT / match[1]).read_text(encoding="utf-8").split(start)[1].split(end)[0]

    return SNIPPET.sub(section, path.read_text(encoding="utf-8"))


def blocks(text: str, *languages: str) -> list[tuple[str, str | None]]:
    """Code and need ("fashion_mnist", ...) of the blocks in some languages."""
    return [(m["code"], m["needs"]) for m in BLOCK.finditer(text) if m["language"] in languages]


def attribute(node: ast.AST) -> str:
    """The dotted name of an expression such as `vaezoo.create`, or ""."""
    if isinstance(node, ast.Attribute) and (before := attribute(node.value)):
        return f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def check_names(code: str) -> None:
    """Names and options of vaezoo that a block uses without being run."""
    for node in ast.walk(ast.parse(code)):
        name = attribute(node)
        if name.startswith("vaezoo."):
            found = vaezoo
            for part in name.split(".")[1:]:
                found = getattr(found, part)
        if isinstance(node, ast.Call) and node.keywords:
            called, given = attribute(node.func), {k.arg for k in node.keywords}
            if called == "vaezoo.create" and isinstance(node.args[0], ast.Constant):
                assert given <= set(MODELS.get(node.args[0].value).Config.model_fields)
            if called == "vaezoo.train":
                assert given <= {
                    *TrainConfig.model_fields,
                    "out",
                    "resume",
                    "device",
                    "progress",
                    "callbacks",
                }


@page
def test_python_runs(page: Path, sandbox: None) -> None:
    """The blocks of a page one after the other, in an empty folder, with those that it includes."""
    if not blocks(page.read_text(encoding="utf-8"), "python"):
        return  # what it includes is run where it comes from
    namespace: dict[str, object] = {"__name__": "page"}
    for number, (code, needs) in enumerate(blocks(text_of(page), "python"), 1):
        compiled = compile(code, f"{page.name}, block {number}", "exec")
        if needs:
            check_names(code)
        else:
            exec(compiled, namespace)


@pytest.mark.parametrize("name", BUILTIN)
def test_model_pages_run_and_show_the_whole_class(name: str, gen_pages: ModuleType, sandbox: None) -> None:
    text = gen_pages.model_page(name)
    exec(compile(gen_pages.create_lines(name), name, "exec"), {})
    shown = blocks(text, "python")[-1][0]
    assert ast.get_docstring(ast.parse(shown).body[0]) is None
    whole = ast.parse(gen_pages.inspect.getsource(MODELS.get(name))).body[0]
    assert isinstance(whole, ast.ClassDef)
    rest = ast.parse(shown).body[0]
    assert isinstance(rest, ast.ClassDef)
    assert [ast.dump(node) for node in rest.body] == [ast.dump(node) for node in whole.body[1:]]
    for field in describe_fields(MODELS.get(name).Config):
        assert f"| <code>{field['name']}</code> |" in text


def test_readme_lists_the_models(gen_pages: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", readme, re.MULTILINE))
    assert rows == {name: vaezoo.describe(name)["summary"] for name in gen_pages.model_names()}


@page
def test_commands_parse(page: Path) -> None:
    """Lines of console blocks that call vaezoo, with their models, options and data; and make's targets."""
    for code, _ in blocks(text_of(page), "console"):
        for line in code.splitlines():
            program, *words = shlex.split(line, comments=True) or [""]
            if program == "make":
                assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            if program == "vaezoo":
                check_command(words, line)


def check_command(words: list[str], line: str) -> None:
    try:
        args = make_parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"this command does not parse: {line}")
    options = parse_options(getattr(args, "options", []))
    models = [args.model] if args.command == "train" and args.model else []
    if args.command == "compare":
        models = [word for word in args.models if "=" not in word and "/" not in word]  # paths are of runs
        options = parse_options([word for word in args.models if "=" in word])
    below(options, "data")
    if args.command != "info" and getattr(args, "data", None) is not None:
        assert args.data in DATASETS.names(), line
    for name in models:
        prior = MODELS.get(name).default_prior
        fields = {**(PRIORS.get(prior).Config.model_fields if prior else {}), **TrainConfig.model_fields}
        kinds = (
            (name, MODELS.get(name).Config.model_fields),
            ("training", TrainConfig.model_fields),
            ("prior", {f"prior_{field}": None for field in fields}),
        )
        split_options(below(options, name), *kinds)
        split_options({k: v for k, v in options.items() if "." not in k}, *kinds)


@page
def test_links_lead_to_files(page: Path, gen_pages: ModuleType) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    generated = gen_pages.pages() if page.parent.name == "docs" else {}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        if not path or "://" in target:
            continue
        assert path in generated or (page.parent / path).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", KOREAN, **by_path)
def test_korean_page_says_what_the_english_one_says(page: Path) -> None:
    """As far as it can be told without reading: code but for its comments, pictures, links, and headings."""
    korean, english = text_of(page), text_of(page.with_name(page.name.replace(".ko.", ".")))

    def python(text: str) -> list[tuple[str, str | None]]:
        return [(ast.dump(ast.parse(code)), needs) for code, needs in blocks(text, "python")]

    def prose(text: str) -> str:
        return re.sub(r"```.*?```", "", text, flags=re.DOTALL)

    assert python(korean) == python(english)
    assert blocks(korean, "console") == blocks(english, "console")
    for pattern in (r"!\[[^]]+\]\((.*?)\)", r"^(#+) ", r"<!-- table: (\w+) -->"):  # all in the same order
        found, expected = (re.findall(pattern, prose(text), re.MULTILINE) for text in (korean, english))
        assert found == expected
    assert {*re.findall(r"\]\((.*?)\)", prose(english))} <= {*re.findall(r"\]\((.*?)\)", prose(korean))}


def test_correctness_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "correctness.md").read_text(encoding="utf-8")
    file, count = None, 0
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", text):
        file = path or file
        tests = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", tests, re.MULTILINE), f"{file}::{name}"
        count += 1
    assert count > 0


def test_evaluation_page_has_every_metric() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    titles = {title for line in re.findall(r"^### (.*)$", text, re.MULTILINE) for title in line.split(", ")}
    data = vaezoo.load_data("sprites", size=16, train_size=100, test_size=50)
    for name in ("vae", "vq_vae2"):
        report = vaezoo.evaluate(vaezoo.create(name, image_shape=data.image_shape), data, n=20, samples=2)
        for metric in (*report.metrics, *report.skipped, *report.details):
            base = re.sub(r"_sprites|_real$|_\d$", "", metric.split("/")[1])  # features; level
            assert base in titles, f"{metric} is not explained"


def test_api_page_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in vaezoo.__all__:
        module = vaezoo._NAMES[name]
        assert f"::: {module}.{name}" in text or f"::: {module}\n" in text, name


@pytest.mark.slow
def test_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    pytest.importorskip("mkdocs_static_i18n", reason="mkdocs-static-i18n is not installed")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Not --quiet: what is not logged is not counted as a warning.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": path}
    build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    for name in BUILTIN:
        assert tmp_path / "site" / "models" / name / "index.html" in pages
    for path, language in (("tutorial", "en"), ("ko/tutorial", "ko"), ("ko/models/vae", "ko")):
        html = (tmp_path / "site" / path / "index.html").read_text(encoding="utf-8")
        assert f'<html lang="{language}"' in html
    home = (tmp_path / "site" / "ko" / "index.html").read_text(encoding="utf-8")
    assert "<!-- table" not in home
    assert 'href="models/vae/"' in home
    for html in pages:
        assert not FETCHED.search(html.read_text(encoding="utf-8")), f"{html} fetches from elsewhere"
