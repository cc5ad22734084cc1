"""Train, evaluate and picture several models on the same data, or take runs that are done, and put them into
one table: mean and spread over seeds, with the differences that are within noise marked."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vaezoo.checkpoint import (
    PRIORS_FOLDER,
    REPORT,
    WEIGHTS,
    load,
    prior_folder,
    run_header,
    write_text,
)
from vaezoo.config import split_options
from vaezoo.data import ImageData, load_data
from vaezoo.errors import CheckpointError, VaezooError, unknown
from vaezoo.evaluation import Report, evaluate
from vaezoo.evaluation.html import comparison_page
from vaezoo.evaluation.side_by_side import Reports, SideBySide, side_by_side
from vaezoo.plots import PICTURES, captioned, overview, save_pictures
from vaezoo.priors import PRIORS
from vaezoo.random import derive, seeded
from vaezoo.registry import MODELS
from vaezoo.run import STATE, TrainConfig
from vaezoo.trainer import fit_prior, resolve_device, train
from vaezoo.zoo import create

PLAN = "compare.json"

#: Options of `evaluate` that a comparison sets itself.
_SET_HERE = ("model", "data", "seed", "progress")


def compare(
    models: Sequence[str],
    data: Any,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    device: torch.device | str | None = None,
    progress: bool | None = None,
    model_options: Mapping[str, Mapping[str, Any]] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    baseline: str | None = None,
    **options: Any,
) -> dict[str, list[Report]]:
    """Train each model with each seed, fit its prior if it needs one, evaluate it and draw its pictures.

    What is already in `out` is not done again, and an interrupted run is resumed, so that the same call
    finishes what was begun, and one with more seeds adds them. Writes a folder for each run, NAME for seed 0
    and NAME-seed1 and so on for the others; the comparison as report.md, report.html and comparison.json; all
    reports as report.json; and overview.png.

    Args:
        models: registered names.
        data: as in `train`; the same images for all seeds.
        out: the folder.
        seeds: of the training and the evaluation.
        device: as in `train`.
        progress: as in `train`.
        model_options: by model name, options of its config, its training or its prior, over `options`.
        evaluation: options of `evaluate`.
        baseline: the model that the others are compared with; None: the best one, metric by metric.
        **options: for all models: fields of `TrainConfig` or of their configs, and with the prefix `prior_`
            those of the priors that are fitted.

    Returns:
        The reports by name, one for each seed.

    Raises:
        VaezooError: an unknown model or option or a wrong value, before anything is trained.
        CheckpointError: `out` holds runs with other options.
    """
    out = Path(out)
    model_options, evaluation = dict(model_options or {}), dict(evaluation or {})
    _check(models, seeds, options, model_options, evaluation, baseline)
    images = load_data(data, device=resolve_device(device))
    plans = {
        (name, seed): _plan(name, images, {"seed": seed, **options, **model_options.get(name, {})})
        for seed in seeds
        for name in models
    }
    reports: dict[str, list[Report]] = {name: [] for name in models}
    for (name, seed), plan in plans.items():
        report = _one(name, images, _folder(out, name, seed), plan, evaluation, seed, device, progress)
        reports[name].append(report)
    first = {name: _folder(out, name, seeds[0]) for name in models}
    trained = {name: load(folder, resolve_device(device)) for name, folder in first.items()}
    overview(trained, images.test, out / "overview.png", seeds[0])
    folders = {name: [_folder(out, name, seed) for seed in seeds] for name in models}
    _write(out, reports, folders, baseline)
    return reports


def compare_runs(
    runs: Sequence[str | Path], out: str | Path | None = None, baseline: str | None = None
) -> dict[str, list[Report]]:
    """Compare runs that are trained and evaluated.

    Runs that differ in nothing but their seed are seeds of one model. Models of one name are told apart by
    the options in which they differ, or by their priors.

    Args:
        runs: folders with model.safetensors and report.json, as `train` and `vaezoo evaluate` write them; or
            RUN/priors/NAME, for a model with one of its priors, as `vaezoo evaluate --prior` writes them.
        out: where to write report.md, report.html, comparison.json and report.json; None: nowhere.
        baseline: as in `compare`, by a name of what is returned.

    Returns:
        The reports by name, one for each run.

    Raises:
        VaezooError: a run that is not evaluated, or with another prior, two of the same model and seed, or
            reports of different images, splits or counts.
    """
    folders = _named([Path(run) for run in runs])
    reports = {name: [Report.load(folder / REPORT) for folder in group] for name, group in folders.items()}
    side_by_side(reports, baseline)  # before anything is written
    if out is not None:
        _write(Path(out), reports, folders, baseline)
    return reports


def table(reports: Reports, style: str = "simple", baseline: str | None = None) -> str:
    """One row for each metric, one column for each model, and the rule by which differences are marked.

    reports: by model, one or one for each seed; style: of `tabulate`; baseline: as in `compare`."""
    compared = side_by_side(reports, baseline)
    return f"{compared.table(style)}\n\n{compared.caption('bold' if style == 'pipe' else '*')}"


def _check(
    models: Sequence[str],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    model_options: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    baseline: str | None,
) -> None:
    """Refuse what can be refused without the data."""
    if not models:
        raise VaezooError("compare needs the name of at least one model")
    for name in models:
        MODELS.get(name)
    for name in (*model_options, *([] if baseline is None else [baseline])):
        if name not in models:
            raise VaezooError(unknown("model to compare", name, models))
    if not seeds or len(set(seeds)) < len(seeds) or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise VaezooError(f"compare: seeds={list(seeds)} is not valid: give different numbers, such as 0, 1")
    if any("seed" in given for given in (options, *model_options.values())):
        raise VaezooError("compare: the seed of a run is one of seeds, such as seeds=[0, 1]")
    possible = [name for name in inspect.signature(evaluate).parameters if name not in _SET_HERE]
    for name, value in evaluation.items():
        if name not in possible:
            raise VaezooError(unknown("option of evaluate", name, possible))
        if not isinstance(value, str | int | list | tuple):
            raise VaezooError(
                f"evaluate: {name}={value!r} cannot be compared by: give a number, name or list"
            )


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / (name if seed == 0 else f"{name}-seed{seed}")


def _named(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Runs by model, those that differ in their seed alone under one name."""
    if not runs:
        raise VaezooError("compare needs at least one run")
    groups: dict[str, list[Path]] = {}
    facts: dict[str, tuple[str, dict[str, Any]]] = {}
    seen: dict[tuple[str, Any], Path] = {}
    for run in runs:
        header = _header(run)
        settings = _settings(header)
        seed = settings.pop("seed", None)
        key = json.dumps([header["model"], settings], sort_keys=True)
        if (key, seed) in seen:
            raise VaezooError(f"{seen[key, seed]} and {run} are the same model with the same seed, {seed}")
        seen[key, seed] = run
        groups.setdefault(key, []).append(run)
        facts[key] = header["model"], settings
    named = {}
    for key, (model, settings) in facts.items():
        others = [given for name, given in facts.values() if name == model and given is not settings]
        telling = {k: v for k, v in settings.items() if any(_tells(k, settings, other) for other in others)}
        named[" ".join([model, *(f"{k}={_short(v)}" for k, v in telling.items())])] = groups[key]
    return named


def _header(run: Path) -> dict[str, Any]:
    """The header of an evaluated run, or of a model with one of its priors, RUN/priors/NAME."""
    of_prior = run.parent.name == PRIORS_FOLDER and not (run / WEIGHTS).exists()
    whole, prior = (run.parent.parent, run.name) if of_prior else (run, None)
    header = run_header(whole, prior)[0]
    evaluate_it = f"vaezoo evaluate {whole}" + (f" --prior {prior}" if prior else "")
    if not (run / REPORT).exists():
        raise VaezooError(f"{run} is not evaluated yet: {evaluate_it}")
    measured = Report.load(run / REPORT).header.get("model", {})
    if "prior" in measured and not _same_prior(measured["prior"], header["prior"]):
        raise VaezooError(
            f"{run / REPORT} was measured with another prior than the run has now: {evaluate_it}"
        )
    return header


def _same_prior(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> bool:
    """The same name and options, as far as both know them: another version may know more."""
    if a is None or b is None:
        return a is b
    return a["name"] == b["name"] and all(b["config"].get(k, v) == v for k, v in a["config"].items())


def _tells(option: str, settings: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """An option sets a run apart from another; those of a prior only among runs with that prior."""
    if option.startswith("prior_") and settings["prior"] != other["prior"]:
        return False
    return bool(settings[option] != other.get(option))


def _settings(header: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the model, its training and its prior in one dictionary; the prior's have their prefix."""
    info, prior = header.get("info", {}), header.get("prior") or {}
    fitting = {**prior.get("config", {}), **info.get("prior_train", {}), "": prior.get("name")}
    fitting.pop("seed", None)
    return {
        **header["config"],
        **info.get("train", {}),
        **{f"prior_{key}".rstrip("_"): value for key, value in fitting.items()},
        "data": info.get("data", {}).get("fingerprint"),
    }


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _write(
    out: Path, reports: Mapping[str, list[Report]], folders: Mapping[str, list[Path]], baseline: str | None
) -> None:
    """The comparison as pages and as JSON."""
    compared = side_by_side(reports, baseline)
    runs = {folder: report for name in reports for folder, report in zip(folders[name], reports[name])}
    first = next(iter(runs.values()))
    title = f"{len(reports)} models on {first.header.get('data', {}).get('name', 'the same data')}"
    names = {folder: os.path.relpath(folder, out) for folder in runs}
    links = {name: f"{name}/report.html" for name in names.values()}
    pictures = {PICTURE: out / "overview.png"} if (out / "overview.png").exists() else {}
    page = comparison_page(title, reports, compared, pictures, links)
    by_run = {names[folder]: report.to_dict() for folder, report in runs.items()}
    write_text(out / REPORT, json.dumps(by_run, indent=1) + "\n")
    write_text(out / "comparison.json", json.dumps(compared.to_dict(), indent=1) + "\n")
    write_text(out / "report.html", page)
    write_text(out / "report.md", _markdown(title, reports, compared, folders, out))


PICTURE = "inputs, reconstructions and samples of every model"


def _markdown(
    title: str,
    reports: Mapping[str, list[Report]],
    compared: SideBySide,
    folders: Mapping[str, list[Path]],
    out: Path,
) -> str:
    """The comparison as a page: overview, table, then the pictures of each model's first run and what was
    skipped in it."""
    data = next(iter(reports.values()))[0].header.get("data", {})
    parts = [f"# {title}", f"Data: `{json.dumps(data)}`"]
    if (out / "overview.png").exists():
        parts.append(f"![{PICTURE}](overview.png)")
    parts += [compared.table("pipe"), compared.caption("bold")]
    for name, group in reports.items():
        parts.append(f"## {name}")
        folder = folders[name][0]
        drawn = [picture for picture in PICTURES if (folder / f"{picture}.png").exists()]
        parts += [f"![{p}]({os.path.relpath(folder / p, out)}.png)" for p in drawn]
        parts += [f"- {metric}: not measured, {reason}" for metric, reason in group[0].skipped.items()]
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
) -> Report:
    record = {"plan": plan, "data": data.header(), "evaluation": evaluation, "seed": seed}
    text = json.dumps(record, indent=1) + "\n"
    if (folder / PLAN).exists():
        if (folder / PLAN).read_text(encoding="utf-8") != text:
            raise CheckpointError(
                f"{folder} holds a run with other options; compare into another folder or remove it"
            )
        if (folder / REPORT).exists():
            return Report.load(folder / REPORT)
    elif (folder / WEIGHTS).exists() or (folder / STATE).exists():
        raise CheckpointError(f"{folder} holds a run that compare did not make; compare into another folder")
    write_text(folder / PLAN, text)
    with seeded(derive(seed, "create"), "cpu"):
        model = create(name, **plan["config"])
    run: dict[str, Any] = {"device": device, "progress": progress}
    train(model, data, out=folder, resume=(folder / STATE).exists(), **run, **plan["train"])
    if model.default_prior is not None:
        prior_options = {"seed": seed, **plan["prior"]}
        state = prior_folder(folder, model.default_prior) / STATE
        fit_prior(model, data, out=folder, resume=state.exists(), **run, **prior_options)
    report = evaluate(model, data, seed=seed, **evaluation)
    pictures = save_pictures(model, data, folder, report.header["split"], seed)
    report.save_pages(folder, captioned(pictures))  # report.json last, because it says that all is done
    return report
