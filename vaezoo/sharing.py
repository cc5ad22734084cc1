"""Runs for others: the files that they need, with a page that says what they are."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaezoo.autoencoder import Autoencoder
from vaezoo.checkpoint import (
    REPORT,
    WEIGHTS,
    prior_file,
    priors_beside,
    read_header,
    save,
    weights_file,
    write_text,
)
from vaezoo.errors import VaezooError
from vaezoo.hub import is_address, upload
from vaezoo.zoo import describe

CARD = "README.md"


def push(run: Autoencoder | str | Path, to: str | Path, *, private: bool = False) -> str:
    """Put a model where `vaezoo.load` can take it from: the Hugging Face hub, or a folder with what would go
    there.

    That is model.safetensors with its priors, report.json if the run has one, and a README.md made from them.

    Args:
        run: a run folder, the file of its weights, or a model.
        to: "hf://user/name", which is written anew if it is there; or a folder that is new or empty.
        private: make the repository for yourself alone, if it is new.

    Returns:
        What `vaezoo.load` takes.

    Raises:
        VaezooError: no such run, a folder that is not empty, `huggingface_hub` is not installed
            (`pip install 'vaezoo[hub]'`), or the hub refuses.
    """
    if not is_address(to):
        _fill(run, Path(to), str(to))
        return str(to)
    with tempfile.TemporaryDirectory() as folder:
        _fill(run, Path(folder), str(to))
        upload(Path(folder), str(to), private)
    return str(to)


def _fill(run: Autoencoder | str | Path, folder: Path, address: str) -> None:
    """Write the files that belong to a model into an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise VaezooError(f"{folder} is there already and not empty; name a new folder")
    scores: list[str] = []
    if isinstance(run, Autoencoder):
        save(run, folder)
    else:
        source = weights_file(run)
        read_header(source)  # before a folder is made
        files = {source: WEIGHTS}
        for name in priors_beside(source):
            files[prior_file(source, name)] = str(prior_file("", name))
        if (source.parent / REPORT).exists():
            scores = _scores(source.parent / REPORT)
            files[source.parent / REPORT] = REPORT
        for file, name in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
    write_text(folder / CARD, card(read_header(folder / WEIGHTS), scores, address))


def _scores(path: Path) -> list[str]:
    """What a report says, as lines of Markdown."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            (name, f"{m['value']:.5g}", "" if m["se"] is None else f"{m['se']:.2g}", m["unit"], m["n"])
            for name, m in report["metrics"].items()
        ]
        split = report["header"]["split"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise VaezooError(
            f"{path} is damaged; make it anew with `vaezoo evaluate {path.parent}`, or remove it"
        ) from None
    titles = ("metric", "value", "standard error", "unit", "images")
    about = f"On the {split} split; all that was measured is in {REPORT}."
    return ["", "## Scores", "", about, "", *_table(titles, rows)]


def card(header: Mapping[str, Any], scores: Sequence[str], address: str) -> str:
    """The page of a model, in Markdown, from the header of its weights and the lines about its scores."""
    name, info = header["model"], header.get("info", {})
    about, data = describe(name), info.get("data", {})
    lines = ["---", "library_name: vaezoo", "tags:", *(f"- {tag}" for tag in dict.fromkeys(("vae", name)))]
    lines += ["---", "", f"# {name}", ""]
    lines += [about["summary"], "", f"Paper: {about['paper']}", ""]
    if data:
        lines += [f"Trained on {data.get('name')} with vaezoo.", ""]
    lines += ["```python", "import vaezoo", "", f'model = vaezoo.load("{address}")']
    lines += ["images = model.sample(16)"] if header["prior"] is not None else []
    lines += ["```", "", "## Config", "", *_table(("option", "value"), header["config"].items())]
    if header["prior"] is not None:
        prior = header["prior"]
        lines += ["", f"## Prior: {prior['name']}", "", *_table(("option", "value"), prior["config"].items())]
    if info.get("train"):
        lines += ["", "## Training", "", *_table(("option", "value"), info["train"].items())]
    return "\n".join([*lines, *scores]) + "\n"


def _table(titles: tuple[str, ...], rows: Any) -> list[str]:
    """Rows of a table in Markdown."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *cells)]
