"""Train, evaluate and picture several models on the same data, and put them into one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from vaezoo.autoencoder import Autoencoder
from vaezoo.checkpoint import WEIGHTS, load, read_header, write_text
from vaezoo.data import ImageData, load_data
from vaezoo.errors import CheckpointError, VaezooError, unknown
from vaezoo.evaluation import Report, evaluate
from vaezoo.plots import overview, save_pictures
from vaezoo.priors import PRIORS
from vaezoo.registry import MODELS, create
from vaezoo.trainer import STATE, TrainConfig, fit_prior, resolve_device, train

REPORT = "report.json"


def compare(
    models: Sequence[str],
    data: Any,
    out: str | Path,
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    model_options: Mapping[str, Mapping[str, Any]] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Report]:
    """Train each model, fit its prior if it needs one, evaluate it and draw its pictures.

    What is already in `out` is not done again, and an interrupted run is resumed, so that the same call
    finishes what was begun. Writes one folder for each model, and report.md, report.json and overview.png.

    Args:
        models: registered names.
        data: as in `train`.
        out: the folder.
        device: as in `train`.
        seed: of the training and the evaluation.
        progress: as in `train`.
        model_options: by model name, options of its config, its training or its prior, over `options`.
        evaluation: options of `evaluate`.
        **options: fields of `TrainConfig`, for all models.

    Returns:
        The reports by name.
    """
    out = Path(out)
    images = load_data(data, device=resolve_device(device))
    model_options = dict(model_options or {})
    for name in models:
        MODELS.get(name)
    for name in model_options:
        if name not in models:
            raise VaezooError(unknown("model to compare", name, models))
    plans = {name: _plan(name, images, {"seed": seed, **options, **model_options.get(name, {})}) for name in models}
    trained, reports = {}, {}
    for name, plan in plans.items():
        model, reports[name] = _one(name, images, out / name, plan, dict(evaluation or {}), seed, device, progress)
        trained[name] = model
    overview(trained, images.test, out / "overview.png", seed)
    write_text(out / REPORT, json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=1) + "\n")
    write_text(out / "report.md", markdown(reports, images))
    return reports


def table(reports: Mapping[str, Report], style: str = "simple") -> str:
    """One row for each metric, one column for each model; a dash where a metric does not apply."""
    names = list(dict.fromkeys(metric for report in reports.values() for metric in report.metrics))
    arrows = {"higher": " ↑", "lower": " ↓", None: ""}
    rows = []
    for metric in names:
        found = next(report[metric] for report in reports.values() if metric in report)
        cells = [f"{report[metric].value:.4g}" if metric in report else "-" for report in reports.values()]
        rows.append([metric + arrows[found.better], *cells, found.unit])
    return tabulate(rows, ["metric", *reports, "unit"], style, disable_numparse=True)


def markdown(reports: Mapping[str, Report], data: ImageData) -> str:
    """The comparison as a page: overview, table, then each model's pictures and what was skipped."""
    parts = [
        f"# {len(reports)} models on {data.name}",
        f"Data: `{json.dumps(data.header())}`",
        "![inputs, reconstructions and samples of every model](overview.png)",
        table(reports, "pipe"),
    ]
    for name, report in reports.items():
        parts.append(f"## {name}")
        parts += [f"![{p}]({name}/{p}.png)" for p in ("reconstructions", "samples", "traversals", "interpolations")]
        parts += [f"- {metric}: not measured, {reason}" for metric, reason in report.skipped.items()]
    return "\n\n".join(parts) + "\n"


def split_options(options: Mapping[str, Any], *kinds: tuple[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sort options by the fields that know them: one dict for each kind, the first that knows a name takes it."""
    parts: list[dict[str, Any]] = [{} for _ in kinds]
    for name, value in options.items():
        for part, (_, fields) in zip(parts, kinds):
            if name in fields:
                part[name] = value
                break
        else:
            what = " or of ".join(kind for kind, _ in kinds)
            raise VaezooError(unknown(f"option of {what}", name, [field for _, fields in kinds for field in fields]))
    return parts


def _plan(name: str, data: ImageData, options: Mapping[str, Any]) -> dict[str, Any]:
    """The model, checked, and the options of its training and its prior. Mistakes show before any training."""
    model_class = MODELS.get(name)
    prior = model_class.default_prior
    prior_fields = {f"prior_{field}": field for field in PRIORS.get(prior).Config.model_fields} if prior else {}
    train_fields = TrainConfig.model_fields
    kinds = (
        (f"model {name}", model_class.Config.model_fields),
        ("training", train_fields),
        ("its prior", {**prior_fields, **({f"prior_{field}": field for field in train_fields} if prior else {})}),
    )
    config, training, fitting = split_options(options, *kinds)
    return {
        "config": {"image_shape": data.image_shape, **config},
        "train": TrainConfig.parse(training, name).model_dump(include=set(training)),
        "prior": {option.removeprefix("prior_"): value for option, value in fitting.items()},
    }


def _one(
    name: str,
    data: ImageData,
    folder: Path,
    plan: dict[str, Any],
    evaluation: dict[str, Any],
    seed: int,
    device: torch.device | str | None,
    progress: bool | None,
) -> tuple[Autoencoder, Report]:
    model = create(name, **plan["config"])
    record = {"plan": json.loads(json.dumps(plan)), "data": data.header(), "evaluation": evaluation, "seed": seed}
    done = read_header(folder / WEIGHTS)["info"].get("compare") if (folder / WEIGHTS).exists() else None
    if done is not None and done != record:
        raise CheckpointError(f"{folder} holds a run with other options; compare into another folder or remove it")
    if done is not None and (folder / REPORT).exists():
        return load(folder, resolve_device(device)), Report.load(folder / REPORT)
    run = {"device": device, "progress": progress}
    train(model, data, out=folder, resume=(folder / STATE).exists(), **run, **plan["train"])
    if model.default_prior is not None:
        prior_options = {"seed": seed, **plan["prior"]}
        fit_prior(model, data, out=folder, resume=(folder / "prior" / STATE).exists(), **run, **prior_options)
    report = evaluate(model, data, seed=seed, **evaluation)
    from vaezoo.checkpoint import save

    save(model, folder, {**read_header(folder / WEIGHTS)["info"], "compare": record})
    report.save(folder / REPORT)
    write_text(folder / "report.md", report.to_markdown())
    save_pictures(model, data.test, folder, seed)
    return model, report
