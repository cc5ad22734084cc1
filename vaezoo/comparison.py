"""Train, evaluate and picture several models on the same data, and put them into one table."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from vaezoo.autoencoder import Autoencoder
from vaezoo.checkpoint import WEIGHTS, load, write_text
from vaezoo.config import split_options
from vaezoo.data import ImageData, load_data
from vaezoo.errors import CheckpointError, VaezooError, unknown
from vaezoo.evaluation import Report, evaluate
from vaezoo.plots import overview, save_pictures
from vaezoo.priors import PRIORS
from vaezoo.random import derive, seeded
from vaezoo.registry import MODELS, create
from vaezoo.trainer import STATE, TrainConfig, fit_prior, resolve_device, train

REPORT = "report.json"
PLAN = "compare.json"

#: Options of `evaluate` that a comparison sets itself.
_SET_HERE = ("model", "data", "seed", "progress")


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
        **options: for all models: fields of `TrainConfig` or of their configs, and with the prefix `prior_`
            those of the priors that are fitted.

    Returns:
        The reports by name.

    Raises:
        VaezooError: an unknown model or option or a wrong value, before anything is trained.
        CheckpointError: `out` holds runs with other options.
    """
    out = Path(out)
    model_options, evaluation = dict(model_options or {}), dict(evaluation or {})
    if not models:
        raise VaezooError("compare needs the name of at least one model")
    for name in models:
        MODELS.get(name)
    for name in model_options:
        if name not in models:
            raise VaezooError(unknown("model to compare", name, models))
    possible = [name for name in inspect.signature(evaluate).parameters if name not in _SET_HERE]
    for name, value in evaluation.items():
        if name not in possible:
            raise VaezooError(unknown("option of evaluate", name, possible))
        if not isinstance(value, str | int | list | tuple):
            raise VaezooError(
                f"evaluate: {name}={value!r} cannot be compared by: give a number, name or list"
            )
    images = load_data(data, device=resolve_device(device))
    plans = {
        name: _plan(name, images, {"seed": seed, **options, **model_options.get(name, {})}) for name in models
    }
    trained, reports = {}, {}
    for name, plan in plans.items():
        model, reports[name] = _one(name, images, out / name, plan, evaluation, seed, device, progress)
        trained[name] = model
    overview(trained, images.test, out / "overview.png", seed)
    summary = {name: report.to_dict() for name, report in reports.items()}
    write_text(out / REPORT, json.dumps(summary, indent=1) + "\n")
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
        parts += [
            f"![{p}]({name}/{p}.png)" for p in ("reconstructions", "samples", "traversals", "interpolations")
        ]
        parts += [f"- {metric}: not measured, {reason}" for metric, reason in report.skipped.items()]
    return "\n\n".join(parts) + "\n"


def _plan(name: str, data: ImageData, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of model, training and prior, all checked, so that mistakes show before any training."""
    model_class = MODELS.get(name)
    kinds: list[tuple[str, Mapping[str, Any]]] = [
        (f"model {name}", model_class.Config.model_fields),
        ("training", TrainConfig.model_fields),
    ]
    if model_class.default_prior:
        prior_fields = PRIORS.get(model_class.default_prior).Config.model_fields
        fitting = {f"prior_{field}": field for field in (*prior_fields, *TrainConfig.model_fields)}
        kinds.append(("its prior", fitting))
    config, training, *rest = split_options(options, *kinds)
    config = {"image_shape": data.image_shape, **config}
    prior = {option.removeprefix("prior_"): value for part in rest for option, value in part.items()}
    with torch.device("meta"):
        create(name, **config)
    TrainConfig.parse(training, f"train {name}")
    if model_class.default_prior:
        of_prior, of_fit = split_options(
            prior, ("prior", prior_fields), ("training", TrainConfig.model_fields)
        )
        where = f"prior '{model_class.default_prior}'"
        PRIORS.get(model_class.default_prior).Config.parse(of_prior, where)
        TrainConfig.parse(of_fit, where)
    return {"config": config, "train": training, "prior": prior}


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
    record = {"plan": plan, "data": data.header(), "evaluation": evaluation, "seed": seed}
    text = json.dumps(record, indent=1) + "\n"
    if (folder / PLAN).exists():
        if (folder / PLAN).read_text(encoding="utf-8") != text:
            raise CheckpointError(
                f"{folder} holds a run with other options; compare into another folder or remove it"
            )
        if (folder / REPORT).exists():
            return load(folder, resolve_device(device)), Report.load(folder / REPORT)
    elif (folder / WEIGHTS).exists() or (folder / STATE).exists():
        raise CheckpointError(f"{folder} holds a run that compare did not make; compare into another folder")
    write_text(folder / PLAN, text)
    with seeded(derive(seed, "create"), "cpu"):
        model = create(name, **plan["config"])
    run: dict[str, Any] = {"device": device, "progress": progress}
    train(model, data, out=folder, resume=(folder / STATE).exists(), **run, **plan["train"])
    if model.default_prior is not None:
        prior_options = {"seed": seed, **plan["prior"]}
        fit_prior(model, data, out=folder, resume=(folder / "prior" / STATE).exists(), **run, **prior_options)
    report = evaluate(model, data, seed=seed, **evaluation)
    save_pictures(model, data.test, folder, seed)
    write_text(folder / "report.md", report.to_markdown())
    report.save(folder / REPORT)  # last, because it says that all is done
    return model, report
