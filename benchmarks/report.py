"""What the committed results say: the tables and figures of the docs.

    python benchmarks/report.py                         all tables, as Markdown
    python benchmarks/report.py leaderboard_mnist       one of them

docs/gen_pages.py puts them into the pages when the site is built, so that no number there is typed by hand.
"""

from __future__ import annotations

import argparse
import html
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from vaezoo.evaluation.charts import COLOURS, MARKERS, STYLE, WIDTH, rate_distortion, svg
from vaezoo.evaluation.report import ARROWS, Report
from vaezoo.evaluation.side_by_side import MARKS, Sample, SideBySide, side_by_side

RESULTS = Path(__file__).parent / "results"
DATA = ("mnist", "fashion_mnist", "sprites")

#: Columns of a leaderboard: the metric, with {} for the data set in the names of features, and its title.
COLUMNS = {
    "reconstruction/mse": "MSE",
    "likelihood/distortion": "distortion",
    "likelihood/rate": "rate",
    "likelihood/log_likelihood": "log p(x) ≥",
    "sampling/frechet_{}": "Frechet",
    "sampling/precision_{}": "precision",
    "sampling/recall_{}": "recall",
    "latents/active_units": "active units",
}
DISENTANGLEMENT = {
    "disentanglement/mig": "MIG",
    "disentanglement/dci_disentanglement": "DCI",
    "disentanglement/sap": "SAP",
    "disentanglement/factor_vae_score": "FactorVAE score",
}


# --- Markdown ---------------------------------------------------------------------------------------------


def code(text: str) -> str:
    """Inline code that may stand in a table, whatever it holds."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if text else ""


def cell(text: str) -> str:
    """Text that may stand in a table, whatever it holds."""
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", r"\*").replace("\n", " ")


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sortable(table: str) -> str:
    """A table whose rows docs/assets/sort.js sorts by a click on a head."""
    return f'<div class="sortable" markdown>\n\n{table}\n\n</div>'


def figure(drawn: Figure, label: str, name: str) -> str:
    """A chart that is part of the page, in its colour of text."""
    return f'<figure markdown="0">{svg(drawn, label, name)}<figcaption>{label}</figcaption></figure>'


# --- Studies of benchmarks/compare.py ---------------------------------------------------------------------


@lru_cache
def cells(study: str, data: str) -> dict[str, list[dict[str, Any]]]:
    """The cells of a study on a data set: by label, one for each seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((RESULTS / "compare" / study / data).glob("*.json")):
        found.setdefault(path.stem.rpartition("-seed")[0], []).append(json.loads(path.read_text()))
    return found


def reports(study: str, data: str) -> dict[str, list[Report]]:
    """Their reports."""
    return {
        label: [Report.from_dict(one["report"]) for one in group]
        for label, group in cells(study, data).items()
    }


@lru_cache
def variants(data: str) -> SideBySide:
    """All models on a data set, those first that are nearest to the images in their samples."""
    compared = reports("variants", data)
    frechet = f"sampling/frechet_{data}"
    ranked = sorted(compared, key=lambda name: Sample.of([r[frechet] for r in compared[name]]).mean)
    return side_by_side({name: compared[name] for name in ranked})


def shown(compared: SideBySide, metric: str, label: str) -> str:
    """Mean and spread of a metric, marked as beside the best one."""
    row = next((row for row in compared.rows if row.metric == metric), None)
    found = row.cells.get(label) if row else None
    if found is None:
        return "–"
    text = str(found.sample)
    return f"**{text}**" if found.verdict == "best" else f"{text} {MARKS[found.verdict]}".rstrip()


def columns(data: str) -> dict[str, str]:
    """Metrics of a leaderboard and their titles."""
    chosen = COLUMNS | (DISENTANGLEMENT if data == "sprites" else {})
    return {metric.format(data): title for metric, title in chosen.items()}


def titles(compared: SideBySide, metrics: Mapping[str, str]) -> list[str]:
    """Titles with an arrow to where better is."""
    better = {row.metric: ARROWS[row.better] for row in compared.rows}
    return [f"{title} {better.get(metric, '')}".rstrip() for metric, title in metrics.items()]


def leaderboard(data: str) -> str:
    """All models on a data set."""
    compared, chosen = variants(data), columns(data)
    rows = [
        [f"[`{name}`](models/{name}.md)", *(shown(compared, metric, name) for metric in chosen)]
        for name in compared.seeds
    ]
    table = markdown_table(["model", *titles(compared, chosen)], rows)
    seeds = ", ".join(map(str, sorted({*compared.seeds.values()})))
    return f"{sortable(table)}\n\n{seeds} seeds each. {compared.caption('Bold')}"


def cost() -> str:
    """What the models of the leaderboards cost: medians over data sets and seeds."""
    rows = []
    for name in variants(DATA[0]).seeds:
        runs = [one for data in DATA for one in cells("variants", data)[name]]
        parameters = [one["report"]["header"]["model"]["parameters"] for one in runs]
        row = [f"[`{name}`](models/{name}.md)", span(parameters, ",d")]
        row.append(span([one["training"]["steps"] for one in runs], ",d"))
        row += [median([one["training"][key] for one in runs], ",.0f") for key in TIMES]
        row.append(median([images_per_second(one) for one in runs], ",.0f"))
        fitted = [one["prior_training"]["processor_seconds"] for one in runs if "prior_training" in one]
        rows.append([*row, median(fitted, ",.0f")])
    header = (
        "parameters",
        "steps",
        "seconds",
        "of a core",
        "images/s of a core",
        "s of a core for its prior",
    )
    return sortable(markdown_table(("model", *header), rows))


TIMES = ("wall_seconds", "processor_seconds")


def images_per_second(one: dict[str, Any]) -> float | None:
    """Images that one core trains on in a second, which other work on the machine does not change."""
    training, seconds = one["training"], one["training"]["processor_seconds"]
    return seconds and training["steps"] * one["training_options"]["batch_size"] / seconds


def span(values: Sequence[int], style: str) -> str:
    """The smallest and the largest, or the only one."""
    low, high = min(values), max(values)
    return format(low, style) if low == high else f"{low:{style}} to {high:{style}}"


def median(values: Sequence[float | None], style: str) -> str:
    known = [value for value in values if value is not None]
    return format(statistics.median(known), style) if known else ""


def model_results(name: str) -> str:
    """A model of the leaderboards on every data set, marked as there."""
    rows = []
    for data in DATA:
        compared = variants(data)
        if name in compared.seeds:
            values = [shown(compared, metric.format(data), name) for metric in COLUMNS]
            rows.append([code(data), *values, str(compared.seeds[name])])
    first = titles(variants(DATA[0]), {m.format(DATA[0]): title for m, title in COLUMNS.items()})
    return markdown_table(("data", *first, "seeds"), rows) if rows else ""


def budget() -> str:
    """What all cells have in common, and what they have not."""
    group = cells("variants", "fashion_mnist")
    runs = [one for data in DATA for every in cells("variants", data).values() for one in every]
    first, header = runs[0], runs[0]["report"]["header"]
    rows = [
        ("steps", span([one["training"]["steps"] for one in runs], ",d")),
        *((key.replace("_", " "), str(value)) for key, value in first["training_options"].items()),
        ("test images, and samples", f"{header['n']:,}"),
        ("for the bound on log p(x)", f"{header['samples']} samples for {header['likelihood_n']} images"),
        ("torch", f"{header['versions']['torch']}, {first['threads']} thread"),
    ]
    for name, (one, *_) in group.items():
        for what, options in ((f"`{name}`", one["options"]), (f"prior of `{name}`", one["prior_options"])):
            if options:
                rows.append((what, code(json.dumps(options))))
    return markdown_table(("of all, or of one", ""), rows)


# --- One option at a time ---------------------------------------------------------------------------------


def option_table(study: str, data: str, option: str, metrics: Mapping[str, str], model: str) -> str:
    """The values of an option of one model, in rising order, with some metrics."""
    found = {
        group[0]["options"][option]: label
        for label, group in cells(study, data).items()
        if group[0]["model"] == model
    }
    every = reports(study, data)
    compared = side_by_side({found[value]: every[found[value]] for value in sorted(found)})
    chosen = {metric.format(data): title for metric, title in metrics.items()}
    rows = [
        [format(value, "g"), *(shown(compared, metric, found[value]) for metric in chosen)]
        for value in sorted(found)
    ]
    seeds = ", ".join(map(str, sorted({*compared.seeds.values()})))
    table = markdown_table([code(option), *titles(compared, chosen)], rows)
    return f"{table}\n\n{seeds} seeds each; marks as above."


def rate_distortion_table() -> str:
    metrics = (
        "reconstruction/mse",
        "likelihood/distortion",
        "likelihood/rate",
        "likelihood/log_likelihood",
        "sampling/frechet_{}",
        "latents/active_units",
    )
    table = option_table("beta", "fashion_mnist", "beta", {m: COLUMNS[m] for m in metrics}, "beta_vae")
    every = reports("beta", "fashion_mnist")
    order = sorted(every, key=lambda label: float(label.partition("-")[2]))
    drawn = rate_distortion({label.replace("beta_vae-", "β = "): every[label] for label in order})
    label = "Rate and distortion of the beta-VAE on Fashion-MNIST; along a dashed line the ELBO is the same."
    return f"{figure(drawn, label, 'beta')}\n\n{table}"


OF_LATENT_DIM = (("vae", "mnist"), ("vae", "fashion_mnist"), ("ae", "fashion_mnist"))


def latent_dim_table() -> str:
    """`latent_dim` against quality, with one picture of all."""
    parts = [figure(latent_dim_figure(), "Samples and reconstructions by the number of latents.", "latents")]
    metrics = {m: COLUMNS[m] for m in ("reconstruction/mse", "sampling/frechet_{}")}
    likelihood = {m: COLUMNS[m] for m in ("likelihood/rate", "likelihood/log_likelihood")}
    for model, data in OF_LATENT_DIM:
        more = likelihood | {"latents/active_units": "active units"} if model == "vae" else {}
        table = option_table("latent_dim", data, "latent_dim", metrics | more, model)
        parts.append(f"`{model}` on {code(data)}:\n\n{table}")
    return "\n\n".join(parts)


def latent_dim_figure() -> Figure:
    panels = {"reconstruction/mse": "MSE", "sampling/frechet_{}": "Frechet distance"}
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        for axes, (metric, title) in zip(drawn.subplots(1, 2), panels.items()):
            for (model, data), colour, marker in zip(OF_LATENT_DIM, COLOURS, MARKERS):
                points = sorted(
                    (int(label.partition("-")[2]), Sample.of([r[metric.format(data)] for r in group]))
                    for label, group in reports("latent_dim", data).items()
                    if label.startswith(f"{model}-")
                )
                dims = [dim for dim, _ in points]
                axes.errorbar(
                    dims,
                    [sample.mean for _, sample in points],
                    [sample.spread or 0 for _, sample in points],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    capsize=2,
                    linewidth=1,
                    label=f"{model}, {data}",
                )
            axes.set(xscale="log", yscale="log", xlabel="latent_dim", title=title)
            axes.set_xticks(dims, map(str, dims))
            axes.minorticks_off()
        drawn.axes[0].legend(fontsize=7, frameon=False)
    return drawn


def codebook_table() -> str:
    metrics = {
        "reconstruction/mse": "MSE",
        "likelihood/distortion": "distortion",
        "latents/perplexity": "perplexity",
        "latents/dead_codes": "dead codes",
        "reconstruction/rfd_{}": "Frechet of reconstructions",
    }
    return option_table("codebook", "fashion_mnist", "codes", metrics, "vq_vae")


# --- Pictures of benchmarks/compare.py --------------------------------------------------------------------

KINDS = {
    "reconstructions": "Test images, and below them their reconstructions.",
    "samples": "Samples from the model's own prior, not selected.",
    "traversals": "The same test image with one latent moved: rows by what a latent says, most first.",
    "interpolations": "From one test image to another.",
}


def pictures(folder: str, name: str, kinds: Iterable[str] = KINDS, above: str = "") -> str:
    """Pictures of a model: of the leaderboards, in the folder of the data set, or of a study."""
    return "\n\n".join(
        f"![{KINDS[kind]}]({above}assets/gallery/{folder}/{name}-{kind}.png){{ .gallery }}" for kind in kinds
    )


def gallery(data: str) -> str:
    """All models, one kind of picture after the other."""
    parts = []
    for kind, caption in KINDS.items():
        rows = [
            [f"[`{name}`](models/{name}.md)", pictures(data, name, [kind])]
            for name in cells("variants", data)
        ]
        parts += [f"### {kind.capitalize()}", caption, markdown_table(("model", ""), rows)]
    return "\n\n".join(parts)


def beta_pictures() -> str:
    """Reconstructions and samples of the beta-VAE by beta."""
    rows = []
    for label in sorted(cells("beta", "fashion_mnist"), key=lambda label: float(label.partition("-")[2])):
        rows.append([label.partition("-")[2], *(pictures("beta", label, [kind]) for kind in BETA_KINDS)])
    return markdown_table(("β", *BETA_KINDS), rows)


BETA_KINDS = ("reconstructions", "samples")


# --- Other benchmarks -------------------------------------------------------------------------------------


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
    return json.loads((RESULTS / f"{name}.json").read_text())


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


#: Quantity, target, what was found, and whether that matches.
Reproduced = tuple[str, str, str, bool]


def reproduced_ppca(measured: dict[str, Any]) -> list[Reproduced]:
    """A linear VAE beside probabilistic PCA."""
    rows = []
    for key, run in measured["runs"].items():
        best, elbo, parts = run["optimum"], run["elbo"], run["missing_parts"]
        units = f"{run['active_units']} of {run['latents']} latents active"
        if key in measured["targets"]:
            target = "{train:.2f} / {test:.2f}".format(**measured["targets"][key])
            missing = ", ".join(f"{part.replace('_', ' ')} {nats:.2f}" for part, nats in parts.items())
            what = f"ELBO train / test, nats, {key} latents, {run['epochs']} epochs"
            found = f"{elbo['train']:.2f} / {elbo['test']:.2f}; train misses: {missing}; {units}"
        else:
            target = f"{best['active_units']} eigenvalues above it; {best['train']:.2f} / {best['test']:.2f}"
            what = f"{key} ({run['epochs']} epochs): active latents; ELBO train / test, nats"
            found = f"{units}; {elbo['train']:.2f} / {elbo['test']:.2f}"
        rows.append((what, target, found, run["matched"]))
    return rows


def reproduced_pca(measured: dict[str, Any]) -> list[Reproduced]:
    """A linear AE beside PCA."""
    rows = []
    for key, run in measured["runs"].items():
        found = f"{run['linear']['value']:.5f}; with hidden layers {run['nonlinear']['value']:.5f}"
        rows.append((f"test MSE, {key} latents", f"{measured['targets'][key]:.5f}", found, run["matched"]))
    return rows


def reproduced_exemplar_fashion(measured: dict[str, Any]) -> list[Reproduced]:
    """Likelihoods of Norouzi et al. 2020."""
    rows = []
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
    return rows


def reproduced_priors(measured: dict[str, Any]) -> list[Reproduced]:
    """A mixture that is fitted after training, beside the prior before it."""
    rows = []
    for data, of_data in measured.items():
        for model, other in (("ae", "gaussian"), ("vae", "own")):
            one, two = (
                of_data["cells"][f"{model}/{prior}"]["metrics"][f"frechet_{data}"]
                for prior in ("gaussian_mixture", other)
            )
            found = f"{one['value']:.2f} ± {one['se']:.2f} against {two['value']:.2f} ± {two['se']:.2f}"
            lower = two["value"] - one["value"] > 2 * (one["se"] ** 2 + two["se"] ** 2) ** 0.5
            rows.append((f"Frechet distance, {model}, {data}", "lower with the mixture", found, lower))
    return rows


def reproduced_sprites_disentanglement(measured: dict[str, Any]) -> list[Reproduced]:
    """Whether beta-TCVAE disentangles more than the VAE."""
    rows = []
    mig = measured["metrics"]["disentanglement/mig"]
    pairs = f"in {measured['pairs']['MIG above']} of {measured['pairs']['of']} seeds"
    found = f"{mig['beta_tc_vae']['mean']:.2f} against {mig['vae']['mean']:.2f}, higher {pairs}"
    rows.append(("MIG", "higher than the VAE's", found, next(iter(measured["claims"].values()))))
    return rows


def reproduced_plain_loop(measured: dict[str, Any]) -> list[Reproduced]:
    """The trainer beside a loop written by hand."""
    rows = []
    ours, plain = measured["vaezoo"], measured["plain_loop"]
    found = f"{ours['value']:.2f} ± {ours['se']:.2f}"
    target = f"{plain['value']:.2f} ± {plain['se']:.2f}"
    rows.append(("negative ELBO, nats", target, found, measured["matched"]))
    return rows


REPRODUCED: dict[str, Callable[[dict[str, Any]], list[Reproduced]]] = {
    "ppca": reproduced_ppca,
    "pca": reproduced_pca,
    "exemplar_fashion": reproduced_exemplar_fashion,
    "priors": reproduced_priors,
    "sprites_disentanglement": reproduced_sprites_disentanglement,
    "plain_loop": reproduced_plain_loop,
}


def reproductions_table() -> str:
    """What papers and closed forms say, of benchmarks/published.json, beside the committed results."""
    rows = []
    for claim in json.loads((RESULTS.parent / "published.json").read_text(encoding="utf-8")):
        about = [cell(claim["paper"]), cell(claim["protocol"])]
        for name in claim.get("results", []):
            for what, target, found, matched in REPRODUCED[name](result(name)):
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
    **{f"leaderboard_{data}": lambda data=data: leaderboard(data) for data in DATA},
    **{f"gallery_{data}": lambda data=data: gallery(data) for data in DATA},
    "beta_pictures": beta_pictures,
    "budget": budget,
    "cost": cost,
    "rate_distortion": rate_distortion_table,
    "latent_dim": latent_dim_table,
    "codebook_size": codebook_table,
    "sprites": sprites_table,
    "sampling_speed": sampling_speed_table,
    "speed_import": import_table,
    **{f"speed_{section}": lambda section=section: speed_table(section) for section in SPEED},
    "priors_fashion_mnist": lambda: priors_table("fashion_mnist"),
    "priors_mnist": lambda: priors_table("mnist"),
    "exemplar": exemplar_table,
    "reproductions": reproductions_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="table", choices=[[], *TABLES], help=", ".join(TABLES))
    args = parser.parse_args()
    for name in args.names or TABLES:
        print(f"{TABLES[name]()}\n")


if __name__ == "__main__":
    main()
