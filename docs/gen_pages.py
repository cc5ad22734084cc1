"""Pages and tables that are made from the registries, so that the docs cannot drift from the code.

mkdocs-gen-files runs this file. It writes one page for each model and one for each other registry, fills
the places `<!-- table: NAME -->` of the pages written by hand, and completes the navigation.
"""

from __future__ import annotations

import ast
import html
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable
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


# --- Pieces of Markdown -----------------------------------------------------------------------------------


def code(text: str) -> str:
    """Inline code that may stand in a table, whatever it holds."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if text else ""


def cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", r"\*").replace("\n", " ")


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
        f"## How it differs from {parent_name}" if is_variant else "## The whole model",
        (
            f"The class as it is in `{model.__module__}`, without its docstring: "
            f"{len(text.splitlines())} lines. "
            + (f"All the rest is [`{parent_name}`]({parent_name}.md)." if is_variant else "")
        ),
        f"```python\n{text}\n```",
    ]
    return "\n\n".join(parts) + "\n"


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


def sprites_table() -> str:
    """Mean and standard deviation over seeds of benchmarks/reproduce/sprites_disentanglement.py."""
    measured = result("sprites_disentanglement")
    rows = []
    for metric, row in measured["metrics"].items():
        cells = [f"{row[name]['mean']:.3g} ± {row[name]['sd']:.1g}" for name in measured["models"]]
        above = f"{row['beta_tc_vae above vae']} of {measured['pairs']['of']}"
        rows.append([code(metric), *cells, above])
    return markdown_table(["metric", *map(code, measured["models"]), "`beta_tc_vae` above `vae`"], rows)


def exemplar_table() -> str:
    """Runs of benchmarks/reproduce/exemplar_fashion.py beside the published values."""
    measured = result("exemplar_fashion")

    def published(name: str) -> str:
        target = measured["targets"].get(name)
        return "{published:.2f} ({accepted[0]} to {accepted[1]})".format(**target) if target else ""

    rows = []
    for prior, runs in measured["runs"].items():
        for run in runs.values():
            elbo, nll = f"{run['negative_elbo']['value']:.2f}", f"{run['nll']['value']:.2f}"
            epochs = f"{run['epochs']} ({run['ended']}; best {run['best_epoch']})"
            rows.append([code(prior), epochs, elbo, f"{nll} ± {run['nll']['se']:.2f}", published(prior)])
    name = "standard_normal - vamp"
    for epochs, found in measured[name].items():
        nll = f"{found['value']:.2f} ± {found['se']:.2f}"
        rows.append(["their difference", epochs, "", nll, published(name)])
    return markdown_table(["prior", "epochs", "negative ELBO", "−log p(x)", "published (accepted)"], rows)


def result(name: str) -> Any:
    """A committed result of a benchmark."""
    return json.loads((DOCS.parent / f"benchmarks/results/{name}.json").read_text())


def sampling_speed_table() -> str:
    """Cached against naive sampling, from benchmarks/sampling_speed.py."""
    measured = result("sampling_speed")
    rows = [
        [
            code(name),
            f"{row['cached_seconds']:.2f} s",
            f"{row['naive_seconds']:.1f} s",
            f"{row['ratio']:.0f}",
        ]
        for name, row in measured["priors"].items()
    ]
    grid = f"{measured['batch']} grids of {measured['grid']} x {measured['grid']}"
    return markdown_table((f"prior, {grid}", "cached", "full forward pass each", "ratio"), rows)


def speed_table(section: str) -> str:
    """What each way of a section of benchmarks/speed.py took, then the ratios, and what was tried."""
    measured = result("speed")[section]
    header = ["way", "seconds", "seconds of processors"]
    ways = [
        [cell(name), f"{row['wall_seconds']:.3g}", f"{row['cpu_seconds']:.3g}"]
        for name, row in measured["ways"].items()
    ]
    for key, title in (("loss", "loss, nats per image"), ("microseconds_per_image", "µs per image")):
        values = [row.get(key) for row in measured["ways"].values()]
        if all(values):
            header.append(title)
            ways = [[*row, f"{value:.1f}"] for row, value in zip(ways, values)]
    parts = [markdown_table(header, ways)]
    ratios = [
        [
            cell(f"{row['of']} / {row['to']}"),
            f"{row['median']:.2f}",
            f"{row['lowest']:.2f} to {row['highest']:.2f}",
            goal(row),
        ]
        for row in measured["ratios"]
    ]
    if ratios:
        parts.append(markdown_table(("ratio of times", "median", "lowest to highest", "goal"), ratios))
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in measured["settings"].items())
    rounds = len(next(iter(measured["ways"].values()))["wall_each"])
    parts.append(
        f"Medians of {rounds} rounds on {cell(measured['processor'])} with {measured['threads']} threads, "
        f"torch {measured['versions']['torch']}{'; ' if settings else ''}{cell(settings)}."
    )
    if measured["notes"]:
        parts.append("\n".join(["What was tried:", "", *(f"- {cell(note)}" for note in measured["notes"])]))
    return "\n\n".join(parts)


def goal(row: dict[str, Any]) -> str:
    """What a ratio was to be, and whether it is."""
    for key in ("at_least", "at_most"):
        if key in row:
            return f"{key.replace('_', ' ')} {row[key]}: {'met' if row['met'] else '**not met**'}"
    return ""


def import_table() -> str:
    """Seconds that `import vaezoo` adds to `import torch`."""
    table = speed_table("import")
    added = result("speed")["import"]["added_seconds"]
    return f"{table}\n\nAdded by vaezoo: {1000 * added['median']:.0f} ms."


SPEED = ("mlp_vae", "conv_vae", "vq", "evaluation", "scaling", "compile")


def priors_table(data: str) -> str:
    """Samples of benchmarks/priors.py in the shipped features, with standard errors."""
    rows = []
    for name, cell_of in result("priors")[data]["cells"].items():
        model, prior = name.split("/")
        prior = cell_of["prior"]["name"] if prior == "own" else prior
        row = [code(model), code(prior)]
        for metric in ("frechet", "precision", "recall", "density", "coverage"):
            value = cell_of["metrics"][f"{metric}_{data}"]
            digits = 1 if metric == "frechet" else 3
            row.append(f"{value['value']:.{digits}f} ± {value['se']:.{digits}f}")
        for metric in ("bits_per_dim", "bits_per_dim_uniform"):
            found = cell_of["metrics"].get(metric)
            row.append(f"{found['value']:.3f}" if found and "vq" in model else "")
        rows.append(row)
    header = (
        "model",
        "prior",
        "Frechet distance",
        "precision",
        "recall",
        "density",
        "coverage",
        "bits/dim",
        "with uniform codes",
    )
    return markdown_table(header, rows)


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


def reproduced(name: str) -> list[tuple[str, str, str, bool]]:
    """Quantity, target, what was found and whether that matches, of a result that answers a claim."""
    measured = result(name)
    rows: list[tuple[str, str, str, bool]] = []
    if name == "ppca":
        for key, run in measured["runs"].items():
            best, elbo, parts = run["optimum"], run["elbo"], run["missing_parts"]
            units = f"{run['active_units']} of {run['latents']} latents active"
            if key in measured["targets"]:
                target = "{train:.2f} / {test:.2f}".format(**measured["targets"][key])
                missing = ", ".join(f"{part.replace('_', ' ')} {nats:.2f}" for part, nats in parts.items())
                what = f"ELBO train / test, nats, {key} latents, {run['epochs']} epochs"
                found = f"{elbo['train']:.2f} / {elbo['test']:.2f}; train misses: {missing}; {units}"
            else:
                target = (
                    f"{best['active_units']} eigenvalues above it; {best['train']:.2f} / {best['test']:.2f}"
                )
                what = f"{key} ({run['epochs']} epochs): active latents; ELBO train / test, nats"
                found = f"{units}; {elbo['train']:.2f} / {elbo['test']:.2f}"
            rows.append((what, target, found, run["matched"]))
    elif name == "pca":
        for key, run in measured["runs"].items():
            found = f"{run['linear']['value']:.5f}; with hidden layers {run['nonlinear']['value']:.5f}"
            rows.append(
                (f"test MSE, {key} latents", f"{measured['targets'][key]:.5f}", found, run["matched"])
            )
    elif name == "exemplar_fashion":
        longest = max(measured["runs"]["standard_normal"].values(), key=lambda run: run["epochs"])
        equal = max(measured["standard_normal - vamp"], key=int)
        for what, epochs, nll, matched in (
            ("standard_normal", longest["epochs"], longest["nll"], longest["matched"]),
            ("standard_normal - vamp", equal, measured["standard_normal - vamp"][equal], None),
        ):
            ended = measured["runs"]["standard_normal"][str(epochs)]["ended"]
            found = f"{nll['value']:.2f} ± {nll['se']:.2f} ({epochs} epochs: {ended})"
            target = "{published:.2f} ({accepted[0]} to {accepted[1]})".format(**measured["targets"][what])
            matched = nll["matched"] if matched is None else matched
            rows.append((f"−log p(x), nats, {what}", target, found, matched))
    elif name == "priors":
        for data, of_data in measured.items():
            for model, other in (("ae", "gaussian"), ("vae", "own")):
                one, two = (
                    of_data["cells"][f"{model}/{prior}"]["metrics"][f"frechet_{data}"]
                    for prior in ("gaussian_mixture", other)
                )
                found = f"{one['value']:.2f} ± {one['se']:.2f} against {two['value']:.2f} ± {two['se']:.2f}"
                lower = two["value"] - one["value"] > 2 * (one["se"] ** 2 + two["se"] ** 2) ** 0.5
                rows.append((f"Frechet distance, {model}, {data}", "lower with the mixture", found, lower))
    elif name == "sprites_disentanglement":
        mig = measured["metrics"]["disentanglement/mig"]
        pairs = f"in {measured['pairs']['MIG above']} of {measured['pairs']['of']} seeds"
        found = f"{mig['beta_tc_vae']['mean']:.2f} against {mig['vae']['mean']:.2f}, higher {pairs}"
        rows.append(("MIG", "higher than the VAE's", found, next(iter(measured["claims"].values()))))
    elif name == "plain_loop":
        ours, plain = measured["vaezoo"], measured["plain_loop"]
        found = f"{ours['value']:.2f} ± {ours['se']:.2f}"
        target = f"{plain['value']:.2f} ± {plain['se']:.2f}"
        rows.append(("negative ELBO, nats", target, found, measured["matched"]))
    return rows


def reproductions_table() -> str:
    """What papers and closed forms say, of benchmarks/published.json, beside the committed results."""
    rows = []
    for claim in json.loads((DOCS.parent / "benchmarks/published.json").read_text(encoding="utf-8")):
        about = [cell(claim["paper"]), cell(claim["protocol"])]
        for name in claim.get("results", []):
            for what, target, found, matched in reproduced(name):
                verdict = "matched" if matched else "**deviates**"
                rows.append([*about, cell(what), cell(target), cell(found), verdict, code(claim["command"])])
                about = ["", ""]
        if "why" in claim:
            missing = [
                cell(claim["what"]),
                cell(claim["published"]),
                "",
                f"not done: {cell(claim['why'])}",
                "",
            ]
            rows.append([*about, *missing])
    header = ("paper", "protocol", "quantity", "published or closed form", "ours", "verdict", "command")
    return markdown_table(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    "models": model_table,
    "data": data_table,
    "sprites": sprites_table,
    "sampling_speed": sampling_speed_table,
    "speed_import": import_table,
    **{f"speed_{section}": lambda section=section: speed_table(section) for section in SPEED},
    "priors_fashion_mnist": lambda: priors_table("fashion_mnist"),
    "priors_mnist": lambda: priors_table("mnist"),
    "exemplar": exemplar_table,
    "reproductions": reproductions_table,
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


def main() -> None:
    import mkdocs_gen_files

    generated = pages()
    for path, (_, text) in generated.items():
        with mkdocs_gen_files.open(path, "w") as file:
            file.write(text)
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            with mkdocs_gen_files.open(page.name, "w") as file:
                file.write(filled(text))
    config = mkdocs_gen_files.config
    config["nav"] = complete(config["nav"], generated)


if __name__ == "<run_path>":  # the name under which mkdocs-gen-files runs a script
    main()
