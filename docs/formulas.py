"""Formulas: `$...$` in a line and `$$...$$` on their own, as MathML that is made when the docs are built.

mkdocs runs this file as a hook. pymdownx.arithmatex finds the formulas, in the docstrings too; here they
become MathML, which browsers draw by themselves: no script, no font, nothing to fetch from elsewhere.
"""

from __future__ import annotations

import html
import re
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

#: What arithmatex writes with `generic: true`.
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)

latex = LatexToMathML(fancy_error=False)


def mathml(source: str, display: bool, where: str) -> str:
    try:
        return latex.convert_with_local_state(html.unescape(source).strip(), displaystyle=display)
    except LatexError as error:
        raise PluginError(f"{where}: cannot read the formula {source.strip()}: {error}") from None


def on_page_content(content: str, page: Any, **_: Any) -> str:
    where = page.file.src_uri
    # A box of its own, because a wide formula must scroll by itself on a phone.
    content = DISPLAY.sub(lambda m: f'<div class="formula">{mathml(m[1], True, where)}</div>', content)
    return INLINE.sub(lambda m: mathml(m[1], False, where), content)
