"""Pages and tables that are made from the registries, so that the docs cannot drift from the code.

A hook of mkdocs. It makes one page for each model and one for each other registry, fills the places
`<!-- table: NAME -->` of the pages written by hand, and completes the navigation.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import vaezoo
from vaezoo.autoencoder import Autoencoder
from vaezoo.checkpoint import read_header
from vaezoo.config import describe_fields
from vaezoo.data import DATASETS
from vaezoo.evaluation.observe import measure
from vaezoo.likelihoods import LIKELIHOODS
from vaezoo.networks import NETWORKS
from vaezoo.pretrained import Weights, manifest, weights_path
from vaezoo.priors import PRIORS
from vaezoo.registry import MODELS, Registry
from vaezoo.run import TrainConfig

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))  # mkdocs runs this file from wherever it is called
from benchmarks import report  # noqa: E402
from benchmarks.report import cell, code, markdown_table  # noqa: E402

# --- Pieces of Markdown -----------------------------------------------------------------------------------


def options_table(fields: list[dict[str, str]]) -> str:
    """Options as `describe` gives them."""
    if not fields:
        return "No options."
    keys = ("name", "type", "default", "limits")
    rows = [[*(code(field[key]) for key in keys), cell(field["meaning"])] for field in fields]
    return markdown_table(("option", "type", "default", "limits", "meaning"), rows)


def summary(thing: Any) -> str:
    """First paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def docstring(path: str) -> str:
    """The docstring behind a dotted path, laid out by mkdocstrings, without heading and members."""
    options = {
        "show_root_heading": "false",
        "show_root_toc_entry": "false",
        "show_bases": "false",
        "show_signature": "false",
        "merge_init_into_class": "false",
        "members": "false",
    }
    lines = [f"::: {path}", "    options:", *(f"      {key}: {value}" for key, value in options.items())]
    return "\n".join(lines)


def source(thing: type) -> str:
    """The source of a class without its docstring."""
    text = textwrap.dedent(inspect.getsource(thing))
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.ClassDef)
    lines = text.rstrip().splitlines()
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        del lines[first.lineno - 1 : first.end_lineno]
        while not lines[first.lineno - 1].strip():
            del lines[first.lineno - 1]
    return "\n".join(lines)


def is_builtin(thing: Any) -> bool:
    return thing.__module__.split(".")[0] == vaezoo.__name__


def own_names(registry: Registry[Any]) -> list[str]:
    """The names that ship with vaezoo: what is installed beside it when the docs are made is not ours."""
    broken = {name for name, _, error in registry.status() if error}
    return [name for name in registry.names() if name not in broken and is_builtin(registry.get(name))]


# --- Models -----------------------------------------------------------------------------------------------


def model_names() -> list[str]:
    """Parents before children, in the order of the registry otherwise."""
    return sorted(own_names(MODELS), key=lambda name: (len(MODELS.get(name).__mro__), name))


def model_table() -> str:
    return markdown_table(
        ("model", "what it is", "prior"),
        [
            [f"[`{name}`](models/{name}.md)", cell(about["summary"]), code(about["prior"])]
            for name in model_names()
            for about in [vaezoo.describe(name)]
        ],
    )


def create_lines(name: str) -> str:
    """How to make, train and use a model: with the first two options of its own as an example."""
    shown = [f"{field['name']}={field['default']}" for field in own_options(name)[:2]]
    lines = [
        "import vaezoo",
        "",
        'data = vaezoo.load_data("digits", validation=0.2)',
        f'model = vaezoo.create("{name}", {", ".join([*shown, "image_shape=data.image_shape"])})',
        "vaezoo.train(model, data, epochs=1)",
    ]
    prior = MODELS.get(name).default_prior
    if prior is not None:
        epochs = "" if "fit" in vars(PRIORS.get(prior)) else ", epochs=1"  # fitted in closed form, or trained
        lines.append(f"vaezoo.fit_prior(model, data{epochs})  # {prior}")
    return "\n".join([*lines, "images = model.sample(16)"])


def own_options(name: str) -> list[dict[str, str]]:
    """The options that a model adds to its parent's, or declares anew."""
    inherited = describe_fields(MODELS.get(name).__mro__[1].Config)
    return [field for field in vaezoo.describe(name)["options"] if field not in inherited]


def model_page(name: str) -> str:
    model = MODELS.get(name)
    about = vaezoo.describe(name)
    parent = model.__mro__[1]
    is_variant = parent is not Autoencoder and issubclass(parent, Autoencoder)
    parent_name = next((n for n in own_names(MODELS) if MODELS.get(n) is parent), parent.__name__)
    own = own_options(name)
    options = {
        "Its own": own,
        f"From {parent_name if is_variant else 'the contract'}": [
            field for field in about["options"] if field not in own
        ],
    }
    text = source(model)
    parts = [
        f"# {name}",
        docstring(about["class"]),
        *([f"What it minimises, in nats per image:\n\n$$\n{model.equation}\n$$"] if model.equation else []),
        f"**Paper:** {about['paper']}",
        f"**Prior:** {code(about['prior'])}, "
        + (
            "fitted after training with `vaezoo.fit_prior`" if model.default_prior else "there from the start"
        ),
        "## Use",
        f"```python\n{create_lines(name)}\n```",
        f"```console\nvaezoo info {name}\nvaezoo train {name} --data fashion_mnist --out runs/{name}\n```",
        "## Options",
        *(f"### {title}\n\n{options_table(fields)}" for title, fields in options.items() if fields),
        "## Recipe",
        recipe_table(about["recipes"]),
        *measured(name),
        f"## How it differs from {parent_name}" if is_variant else "## The whole model",
        (
            f"The class as it is in `{model.__module__}`, without its docstring: "
            f"{len(text.splitlines())} lines. "
            + (f"All the rest is [`{parent_name}`]({parent_name}.md)." if is_variant else "")
        ),
        f"```python\n{text}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def measured(name: str) -> list[str]:
    """Results and pictures of a model that the leaderboards have."""
    table = report.model_results(name)
    if not table:
        return []
    pictures = report.pictures("fashion_mnist", name, above="../")
    return [
        "## Results",
        "Beside the other models, on the [same budget](../results.md): bold is the best, ≈ within noise "
        "of it, − worse.",
        table,
        pictures,
        "[All models, and other images](../gallery.md).",
    ]


def recipe_table(recipes: dict[str, dict[str, Any]]) -> str:
    if not recipes:
        return "No recipe yet: the [defaults of the trainer](../training.md) apply."
    rows = [
        ["any" if data == "*" else code(data), ", ".join(code(f"{k}={v!r}") for k, v in options.items())]
        for data, options in recipes.items()
    ]
    return markdown_table(("data", "options of the training, over the trainer's defaults"), rows)


# --- Other registries -------------------------------------------------------------------------------------


def class_pages(
    title: str, introduction: str, registry: Registry[Any], facts: Callable[[Any], list[str]]
) -> str:
    parts = [f"# {title}", introduction]
    for name in own_names(registry):
        thing = registry.get(name)
        parts += [f"## {name}", docstring(f"{thing.__module__}.{thing.__qualname__}"), *facts(thing)]
    return "\n\n".join(parts) + "\n"


def configured(thing: Any) -> list[str]:
    paper = getattr(thing, "paper", "")
    return [*([f"**Paper:** {paper}"] if paper else []), options_table(describe_fields(thing.Config))]


def likelihood_facts(thing: Any) -> list[str]:
    logarithm = {
        "binary": "the probability of 0/1 pixels; on grey levels a cross-entropy, which is not normalised",
        "levels": "the probability of one of 256 grey levels",
        "density": "a density",
    }
    outputs = thing.parameters_per_channel
    distribution = thing()(torch.zeros(1, outputs, 4, 4))
    return [
        f"Decoder outputs for each image channel: {outputs}. "
        f"`log_prob` is the logarithm of {logarithm[measure(distribution)]}."
    ]


def data_page() -> str:
    parts = [
        "# Data sets",
        "Names that `vaezoo.load_data` takes, with their options. `root` and `seed` are passed on from "
        "`load_data`; see [Data](../data.md) for what all sets have in common.",
    ]
    for name in own_names(DATASETS):
        function = DATASETS.get(name)
        path = f"{function.__module__}.{function.__qualname__}"
        parts += [f"## {name}", f"::: {path}\n    options:\n      show_root_heading: false"]
    return "\n\n".join(parts) + "\n"


def data_table() -> str:
    names = own_names(DATASETS)
    rows = [[f"[`{name}`](parts/data-sets.md#{name})", cell(summary(DATASETS.get(name)))] for name in names]
    return markdown_table(("name", "what it is"), rows)


def models_index() -> str:
    rows = model_table().replace("(models/", "(")
    return (
        "# Models\n\nEvery model is one class under one name; these pages are made from the registry. "
        f"Each shows the class itself, because a variant is meant to be a few lines.\n\n{rows}\n"
    )


def parts_index() -> str:
    rows = [
        [f"[{title}]({file})", ", ".join(f"[`{n}`]({file}#{n})" for n in own_names(registry))]
        for title, file, registry in (
            ("Priors", "priors.md", PRIORS),
            ("Networks", "networks.md", NETWORKS),
            ("Likelihoods", "likelihoods.md", LIKELIHOODS),
            ("Data sets", "data-sets.md", DATASETS),
        )
    ]
    table = markdown_table(("part", "names"), rows)
    return f"# Parts\n\nWhat models are put together from, by name.\n\n{table}\n"


# --- Trained weights --------------------------------------------------------------------------------------


def pretrained_table() -> str:
    """All trained weights with some of their scores."""
    rows = []
    for entry in manifest().values():
        shown = [("reconstruction/mse", 4), (f"sampling/frechet_{entry.data}", 2)]
        shown += [(f"sampling/{metric}_{entry.data}", 2) for metric in ("precision", "recall")]
        link = f"[`{entry.model}`](weights/{entry.model}-{entry.data}.md)"
        scores = [interval(entry.scores[name], digits) for name, digits in shown]
        rows.append([link, code(entry.data), f"{entry.bytes / 1e6:.1f} MB", *scores])
    titles = ("model", "data", "size", "MSE", "Frechet distance", "precision", "recall")
    return markdown_table(titles, rows)


def interval(score: dict[str, Any], digits: int) -> str:
    """A value with its standard error."""
    se = "" if score["se"] is None else f" ± {score['se']:.{digits}f}"
    return f"{score['value']:.{digits}f}{se}"


def weights_page(entry: Weights) -> str:
    """The card of one file of trained weights."""
    header = read_header(weights_path(entry))
    images = f"../assets/pretrained/{entry.model}-{entry.data}"
    sizes = header["info"]["data"]["sizes"]
    scores = [
        [code(name), interval(score, 4), str(score["n"]), cell(score["unit"])]
        for name, score in entry.scores.items()
    ]
    options = [[code(name), code(str(value))] for name, value in header["config"].items()]
    recipes = [("training", entry.recipe["train"])]
    if entry.recipe["prior"]:
        recipes.append(("its prior's", entry.recipe["prior"]))
    recipe = [[what, code(name), code(str(value))] for what, of in recipes for name, value in of.items()]
    shape = "x".join(map(str, header["config"]["image_shape"]))
    parts = [
        f"# {entry.model}, trained on {entry.data}",
        f'```python\nimport vaezoo\n\nmodel = vaezoo.create("{entry.model}", pretrained="{entry.data}")\n'
        "images = model.sample(4)\n```",
        f"What the model is: [`{entry.model}`](../models/{entry.model}.md). Licence of the weights: "
        f"{entry.licence}. {entry.bytes:,} bytes in half precision; SHA-256 `{entry.sha256}`.",
        f"![64 samples from the model's prior]({images}-samples.png)",
        "Samples from its prior, not selected.",
        f"![32 test images with reconstructions and absolute errors]({images}-pairs.png)",
        "Test images; under each row its reconstructions, and what they differ by.",
        "## Limits",
        f"It knows images of {entry.data} ({shape}), and takes others for such; they are not refused. It "
        "learned within hours on two CPU cores, so it is an example to start from, not the best that such a "
        "model can do. It has seen no more than its training split, whose biases it has. Distances are in "
        f"the features of a classifier of {entry.data}: they are not FID.",
        "## Data",
        f"`{entry.data}`: {sizes['train']:,} images for training, {sizes['validation']:,} to choose the "
        f"weights by; scores are of the test split ({sizes['test']:,}).",
        "## Scores",
        "With standard errors, measured on this file by `benchmarks/pretrained.py`.",
        markdown_table(("metric", "value", "n", "unit"), scores),
        "## Recipe",
        markdown_table(("of", "option", "value"), recipe),
        "## Options of the model",
        markdown_table(("option", "value"), options),
    ]
    return "\n\n".join(parts) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    "models": model_table,
    "data": data_table,
    **report.TABLES,
    "pretrained": pretrained_table,
    "train_options": lambda: options_table(describe_fields(TrainConfig)),
}


def pages() -> dict[str, tuple[str, str]]:
    """Title and text of every generated page, by path."""
    return {
        "models/index.md": ("Models", models_index()),
        **{f"models/{name}.md": (name, model_page(name)) for name in model_names()},
        "parts/index.md": ("Parts", parts_index()),
        "parts/priors.md": (
            "Priors",
            class_pages(
                "Priors",
                "p(z): what a model samples from. Some models have theirs from the start, the others get "
                "one with `vaezoo.fit_prior(model, data, prior=None, ...)`.",
                PRIORS,
                configured,
            ),
        ),
        "parts/networks.md": (
            "Networks",
            class_pages(
                "Networks",
                'Encoders and decoders, chosen by name: `vaezoo.create("vae", network="resnet", '
                'network_options={"blocks": 2})`. Options are given in `network_options`.',
                NETWORKS,
                configured,
            ),
        ),
        "parts/likelihoods.md": (
            "Likelihoods",
            class_pages(
                "Likelihoods",
                'p(x|z), chosen by name: `vaezoo.create("vae", likelihood="gaussian_learned")`. All are '
                "normalised and in nats per image, constants included.",
                LIKELIHOODS,
                likelihood_facts,
            ),
        ),
        "parts/data-sets.md": ("Data sets", data_page()),
        **{
            f"weights/{entry.model}-{entry.data}.md": (f"{entry.model}, {entry.data}", weights_page(entry))
            for entry in manifest().values()
        },
    }


def filled(text: str) -> str:
    """A page written by hand, with its tables."""
    return re.sub(r"<!-- table: (\w+) -->", lambda match: TABLES[match[1]](), text)


def complete(nav: list[Any], generated: dict[str, tuple[str, str]]) -> list[Any]:
    """The navigation with the pages of a folder in the place of the folder."""
    result = []
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, str) and target.endswith("/"):
            folder = [(path, label) for path, (label, _) in generated.items() if path.startswith(target)]
            target = [path if path.endswith("index.md") else {label: path} for path, label in folder]
        result.append({title: target})
    return result


# --- Hooks, which mkdocs calls for the site in each language ----------------------------------------------

GENERATED: dict[str, tuple[str, str]] = {}


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages to the files and to the navigation.

    They are said to lie in the docs folder, where nothing is written: mkdocs-static-i18n takes no others.
    """
    from mkdocs.structure.files import File

    GENERATED.update(pages())
    for path in GENERATED:
        files.append(File(path, config.docs_dir, config.site_dir, config.use_directory_urls))
    config.nav = complete(config.nav, GENERATED)
    return files


def on_page_read_source(page: Any, config: Any) -> str | None:
    """The text of a generated page; None has mkdocs read the file."""
    return GENERATED[page.file.src_uri][1] if page.file.src_uri in GENERATED else None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return filled(markdown)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """One 404 page for all languages, the English one: without text, mkdocs writes no page."""
    return "" if template_name == "404.html" and config.theme["language"] != "en" else output_content
