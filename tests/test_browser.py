"""The docs in a real browser: nothing is fetched from elsewhere, and all is seen, on a phone too."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "mkdocs.yml").is_file():
    pytest.skip("the docs are not part of an installed package", allow_module_level=True)
for name in ("mkdocs", "material", "mkdocstrings", "math_core"):
    pytest.importorskip(name, reason=f"the docs cannot be built without {name}")

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]  # one worker, so one build

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PAGES = (
    "",
    "tutorial/",
    "models/vae/",
    "weights/vae-fashion_mnist/",
    "priors/",
    "evaluation/",
    "api/",
)
VIEWS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 390)]

#: What is wrong with a page, one sentence for each fault. What belongs to a page is below `article`.
FAULTS = r"""
() => {
  const faults = []
  const article = document.querySelector("article")
  const root = document.documentElement
  const name = e => `<${e.localName}> "${(e.textContent || e.currentSrc || "").trim().slice(0, 40)}"`
  const [is, shown] = [root.scrollWidth, root.clientWidth]
  if (is > shown) faults.push(`${is} pixels wide on ${shown}`)

  for (const image of document.images)
    if (!image.complete || !image.naturalWidth) faults.push(`no image at ${image.src}`)

  for (const error of document.querySelectorAll("merror")) faults.push(`error in a formula: ${name(error)}`)
  for (const math of document.querySelectorAll("math")) {
    const box = math.getBoundingClientRect()
    if (!box.width || !box.height) faults.push(`nothing of a formula is seen: ${name(math)}`)
  }
  for (const fraction of document.querySelectorAll("mfrac")) { // where MathML is unknown, all is on one line
    const [above, below] = Array.from(fraction.children, e => e.getBoundingClientRect())
    if (above.bottom > below.top + 1) faults.push(`a fraction is not one: ${name(fraction)}`)
  }
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const text = texts.currentNode
    if (!text.parentElement.closest("pre, code, script") && /\$\$|\\[([\])a-z]/.test(text.data))
      faults.push(`LaTeX in the text: ${text.data.trim().slice(0, 40)}`)
  }

  // Contrast as in WCAG 2, of prose, and of the point of a picture that differs most from what is behind it.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true })
  const luminance = rgb => {
    const [r, g, b] = Array.from(rgb.slice(0, 3), value => {
      value /= 255
      return value <= 0.04 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
    })
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const known = new Map()
  const seen = colours => { // the last over the first, since each may be transparent
    const key = colours.join()
    if (!known.has(key)) {
      for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1) }
      known.set(key, luminance(canvas.getImageData(0, 0, 1, 1).data))
    }
    return known.get(key)
  }
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
  const backs = new Map([[null, ["white"]]])
  const behind = e => {
    if (!backs.has(e)) backs.set(e, [...behind(e.parentElement), getComputedStyle(e).backgroundColor])
    return backs.get(e)
  }
  for (const e of article.querySelectorAll("p, li, td, th, math, figcaption")) {
    const value = contrast(seen(behind(e)), seen([...behind(e), getComputedStyle(e).color]))
    if (value < 4.5) faults.push(`contrast of ${value.toFixed(1)}: ${name(e)}`)
  }
  for (const image of article.querySelectorAll("img")) {
    if (!image.naturalWidth) continue
    const back = seen(behind(image))
    for (const colour of behind(image)) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 64, 64) }
    canvas.drawImage(image, 0, 0, 64, 64)
    const points = canvas.getImageData(0, 0, 64, 64).data
    let most = 1
    for (let i = 0; i < points.length; i += 4)
      most = Math.max(most, contrast(back, luminance(points.slice(i, i + 4))))
    if (most < 3) faults.push(`an image of the colour behind it: ${image.src}`)
  }
  return faults
}
"""

#: Is each character drawn in another way, in the font of the page? One box for all are no glyphs.
DRAWN = r"""
characters => {
  const style = getComputedStyle(document.querySelector("article p") || document.body)
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true })
  canvas.canvas.width = canvas.canvas.height = 48
  const drawn = Array.from(characters, character => {
    canvas.clearRect(0, 0, 48, 48)
    canvas.font = `32px ${style.fontFamily}`
    canvas.fillText(character, 4, 36)
    return canvas.getImageData(0, 0, 48, 48).data.join()
  })
  return new Set(drawn).size == drawn.length
}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": path}
    build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site as it is served, with a slash at the end."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome here (on Debian: apt-get install chromium fonts-noto-cjk)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class View:
    """A tab of the browser, and all that went wrong in it."""

    def __init__(self, chromium: Any, address: str, scheme: str = "light", width: int = 1280) -> None:
        self.address = address
        self.faults: list[str] = []
        self.context = chromium.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 800}, locale="en-GB"
        )
        # Before anything leaves this machine.
        self.context.route(lambda url: not url.startswith((address, "data:", "blob:")), self.elsewhere)
        # Beside every page of another language the theme looks for a map of its site, and does without.
        self.context.route("**/sitemap.xml", lambda route: route.fulfill(body="<urlset/>"))
        self.context.set_default_timeout(180_000)  # milliseconds: on a busy machine a page may take its time
        self.page = self.context.new_page()
        self.page.on("console", self.message)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("requestfailed", self.failed)
        self.page.on("response", self.response)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def elsewhere(self, route: Any) -> None:
        self.faults.append(f"fetched from elsewhere: {route.request.url}")
        route.abort()

    def message(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text}")

    def failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # given up, because the page was left
            self.faults.append(f"failed: {request.url}, {request.failure}")

    def response(self, response: Any) -> None:
        if response.status >= 400:
            self.faults.append(f"status {response.status}: {response.url}")

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)  # until it and what it is made of is loaded

    def look(self) -> list[str]:
        """The faults since the last look, and those that are seen now."""
        seen = self.page.evaluate(FAULTS)  # while which more may be heard
        heard, self.faults[:] = list(self.faults), []
        return heard + seen


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_pages_are_whole(scheme: str, width: int, chromium: Any, address: str, site: Path) -> None:
    translated = [f"ko/{path}" for path in PAGES if (site / "ko" / path / "index.html").is_file()]
    faults = []
    formulas = 0
    with View(chromium, address, scheme, width) as view:
        for path in (*PAGES, *translated):
            view.open(path)
            expected = {"light": "default", "dark": "slate"}[scheme]
            assert view.page.locator("body").get_attribute("data-md-color-scheme") == expected
            faults += [f"{path or 'home'}: {fault}" for fault in view.look()]
            formulas += view.page.locator("math").count()
    assert not faults, "\n".join(faults)
    assert formulas > 40


#: Put HTML at the end of the page, in the place of what was put there before.
APPEND = """html => {
  document.querySelector("#added")?.remove()
  document.querySelector("article").insertAdjacentHTML("beforeend", `<div id=added>${html}</div>`)
}"""
#: What a look finds in what is put there.
BROKEN = {
    "console: wrong": "<img src=x: onerror='console.error(\"wrong\")'>",
    "error: wrong": "<img src=x: onerror='throw \"wrong\"'>",
    "status 404": "<img src=/nothing.png>",
    "no image at": "<img src=/nothing.png>",
    "failed: ": "<img src=/cut.png>",
    "fetched from elsewhere: https://cdn.invalid/": "<link rel=stylesheet href=https://cdn.invalid/a.css>",
    "pixels wide on": "<p style='width: 2000px'>wide</p>",
    "error in a formula": "<math><merror><mtext>x</mtext></merror></math>",
    "nothing of a formula": "<math></math>",
    "a fraction is not one": "<math><mfrac><mi>a</mi><mi style='position: relative; top: -2em'>b</mi></math>",
    "LaTeX in the text: $$": "<p>$$ x $$</p>",
    "LaTeX in the text: \\(": "<p>\\(x\\)</p>",
    "contrast of 1.": "<p style='color: #eee'>faint</p>",
    "an image of the colour behind it": (
        "<img width=9 src=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'>"
        "<path d='M0 4H9' stroke='white'/></svg>\">"
    ),
}


def test_broken_pages_are_noticed(chromium: Any, address: str) -> None:
    with View(chromium, address) as view:
        view.open("tutorial/")
        view.page.route("**/cut.png", lambda route: route.abort("connectionfailed"))
        for fault, html in BROKEN.items():
            assert view.look() == []
            view.page.evaluate(APPEND, html)
            found: list[str] = []
            until = time.monotonic() + 20
            while not any(fault in one for one in found) and time.monotonic() < until:
                view.page.wait_for_timeout(50)
                found += view.look()
            assert any(fault in one for one in found), (fault, found)
            view.page.evaluate(APPEND, "")
            view.page.wait_for_timeout(50)
            view.faults.clear()


def test_hangul_is_drawn(chromium: Any, address: str, site: Path) -> None:
    """On the Korean page if there is one. The fonts are the reader's, so one that has Hangul must be here."""
    with View(chromium, address) as view:
        view.page.set_content("<p lang=ko>한글</p>")
        if not view.page.evaluate(DRAWN, "가나힣뷁"):
            pytest.skip("no font with Hangul here (on Debian: apt-get install fonts-noto-cjk)")
        assert not view.page.evaluate(DRAWN, "\u0378\u0379\u0380")  # no characters: one box for all
        translated = (site / "ko" / "index.html").is_file()
        view.open("ko/" if translated else "")
        if translated:
            text = view.page.locator("article").inner_text()
            hangul = sorted({c for c in text if "가" <= c <= "힣"})
            assert len(hangul) > 20
            assert view.page.locator("html").get_attribute("lang") == "ko"
        else:
            hangul = list("변분오토인코더")
            view.page.evaluate(APPEND, "<p lang=ko>변분 오토인코더</p>")
        assert view.page.evaluate(DRAWN, "".join(dict.fromkeys(hangul)))


class Links(HTMLParser):
    """Anchors of a page, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" or (key, tag) == ("name", "a"):
                self.anchors.add(value or "")
            elif key in ("href", "src"):
                self.targets.append(value or "")


def dead_links(site: Path) -> list[str]:
    pages = {file: Links(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    dead = []
    for file, links in pages.items():
        here = "http://site/" + file.relative_to(site).as_posix()
        for target in links.targets:
            url, anchor = urldefrag(urljoin(here, target) if target else here)
            if urlsplit(url).netloc != "site":
                continue
            path = site / unquote(urlsplit(url).path).lstrip("/")
            path = path / "index.html" if path.is_dir() else path
            found = path.is_file() and (path not in pages or unquote(anchor) in pages[path].anchors)
            if not found:
                dead.append(f"{file.relative_to(site)} -> {target}")
    return dead


def test_links_lead_somewhere(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 20
    assert not dead_links(site)


@pytest.mark.parametrize("link", ["b/#x", "b/#", "missing/", "b/missing.png"])
def test_a_dead_link_is_noticed(link: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "index.html").write_text("<p id=y><a href='../#z'>back</a>")
    (tmp_path / "index.html").write_text("<p id=z><a href='b/#y'>b</a> <a href='https://x.invalid/'>out</a>")
    assert dead_links(tmp_path) == []
    (tmp_path / "index.html").write_text(f"<p id=z><a href='{link}'>b</a>")
    assert dead_links(tmp_path) == ([] if link == "b/#" else [f"index.html -> {link}"])
