"""The formulas of the docs: what stands for one, what does not, and what one is made of."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

FILE = Path(__file__).parents[1] / "docs" / "formulas.py"
if not FILE.is_file():
    pytest.skip("the docs are not part of an installed package", allow_module_level=True)
for name in ("mkdocs", "math_core", "pymdownx"):
    pytest.importorskip(name, reason=f"the docs cannot be built without {name}")


@pytest.fixture(scope="module")
def formulas() -> ModuleType:
    spec = importlib.util.spec_from_file_location("formulas", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def html(formulas: ModuleType, text: str) -> str:
    """A page as the site has it, with the site's own options."""
    from markdown import Markdown
    from mkdocs.config import load_config

    config = load_config(str(FILE.parents[1] / "mkdocs.yml"))
    made = Markdown(extensions=config["markdown_extensions"], extension_configs=config["mdx_configs"])
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    return formulas.on_page_content(made.convert(text), page=page)


def test_formulas_in_a_line_and_on_their_own(formulas: ModuleType) -> None:
    made = html(formulas, "A $z_d < 1$ and\n\n$$\n\\frac{a}{b} \\le 2\n$$\n\n- $$x$$\n")
    assert "<msub><mi>z</mi><mi>d</mi></msub><mo>&lt;</mo><mn>1</mn></math> and" in made
    assert re.search(
        r'<div class="formula"><math display="block">.*<mfrac><mi>a</mi><mi>b</mi></mfrac>', made
    )
    assert made.count("<math") == 3
    assert "arithmatex" not in made


@pytest.mark.parametrize(
    "text",
    [
        "From $5 to $10 an hour.",
        "`$a$`",
        "```console\necho $HOME $$ $PATH$\n```",
        "$VAEZOO_DATA and $HOME",
        r"\$a\$",
    ],
)
def test_other_dollars_stay(text: str, formulas: ModuleType) -> None:
    made = html(formulas, text)
    assert "<math" not in made
    assert re.sub(r"<[^>]*>", "", made).count("$") == text.count("$")


def test_a_formula_that_cannot_be_read_names_its_page(formulas: ModuleType) -> None:
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match=r"page\.md: cannot read the formula \\foo"):
        html(formulas, r"A $\foo$.")
