"""What a prior buys: models x priors x data, each compared by 10,000 samples in the shipped features.

    python benchmarks/priors.py --out runs/priors                       all of it, some hours on two cores
    python benchmarks/priors.py --out runs/priors --data mnist          one of the data sets
    python benchmarks/priors.py --out runs/priors --only vq_vae/transformer   one of the cells

Every model and every prior is trained in a folder of its own under --out; what is interrupted goes on, and
what is finished is not repeated. The result of a cell goes into the folder results at once, with the options
that differ from the recipe to fit two cores, and samples, not selected, to docs/assets/priors."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

import vaezoo
from vaezoo.evaluation.report import Report
from vaezoo.plots import grid, samples, save_grid
from vaezoo.random import derive, generator, seeded
from vaezoo.run import STATE

RESULTS = Path(__file__).parent / "results" / "priors.json"
PICTURES = Path(__file__).parents[1] / "docs" / "assets" / "priors"
COLUMNS = 16
DATA = ("fashion_mnist", "mnist")

#: Registered names of the models, with options of the model and of its training that differ from the recipe.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ae": ("ae", {}, {}),
    "vae": ("vae", {}, {}),
    "vq_vae": ("vq_vae", {}, {}),
    "vq_vae_64_codes": ("vq_vae", {"codes": 64}, {"epochs": 8}),
}
#: Options of the priors of each model; "own" is the one that the model has from the start, "gaussian" a
#: mixture of one, the simplest that Ghosh et al. 2020 fit to an autoencoder.
CELLS: dict[str, dict[str, dict[str, Any]]] = {
    "ae": {"gaussian": {"components": 1}, "gaussian_mixture": {}},
    "vae": {"own": {}, "gaussian_mixture": {}, "flow": {}, "two_stage": {}},
    "vq_vae": {
        "transformer": {"width": 64, "epochs": 8},
        "pixelsnail": {"epochs": 6},
        "pixelcnn": {"width": 48, "layers": 6, "epochs": 6},
    },
    "vq_vae_64_codes": {"transformer": {"width": 96, "dropout": 0.0, "epochs": 20}},
}
METRICS = (
    "frechet_{}",
    "kernel_distance_{}",
    "precision_{}",
    "recall_{}",
    "density_{}",
    "coverage_{}",
    "frechet_{}_real",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--only", nargs="+", help="cells, as model/prior")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    for name in args.data:
        data = vaezoo.load_data(name)
        for model, priors in CELLS.items():
            for prior, options in priors.items():
                if args.only is None or f"{model}/{prior}" in args.only:
                    cell(args.out / name, data, model, prior, options, args.seed)


def cell(out: Path, data: Any, model_name: str, prior: str, options: dict[str, Any], seed: int) -> None:
    """Train what is not trained yet, evaluate, and put the result among the others."""
    model_folder = finished(out / model_name, lambda folder: train(folder, data, model_name, seed))
    folder = model_folder
    if prior != "own":
        folder = finished(
            out / f"{model_name}-{prior}",
            lambda folder: fit(folder, model_folder, data, prior, options, seed),
        )
    picture = PICTURES / f"{data.name}-{model_name}-{prior}.png"
    if not picture.exists():
        save_grid(samples(vaezoo.load(folder), 4 * COLUMNS, seed, COLUMNS), picture)
    if prior == "transformer" and not (PICTURES / f"{data.name}-inpainting.png").exists():
        save_grid(inpaintings(vaezoo.load(folder), data, seed), PICTURES / f"{data.name}-inpainting.png")
    report_file = out / f"{model_name}-{prior}.json"
    if report_file.exists():
        report = Report.load(report_file)
    else:
        model = vaezoo.load(folder)
        report = vaezoo.evaluate(
            model,
            data,
            axes=["likelihood", "sampling"],
            samples=100,
            likelihood_n=1000,
            seed=seed,
            progress=True,
        )
        report.save(report_file)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    of_data = results.setdefault(
        data.name,
        {
            "data": data.header(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {"torch": torch.__version__, "vaezoo": vaezoo.__version__},
            "cells": {},
        },
    )
    of_data["cells"][f"{model_name}/{prior}"] = summary(report, folder, data.name, model_name, options)
    of_data["cells"] = {
        key: of_data["cells"][key]
        for key in (f"{m}/{p}" for m, priors in CELLS.items() for p in priors)
        if key in of_data["cells"]
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    frechet = report[f"sampling/frechet_{data.name}"]
    print(f"{data.name} {model_name}/{prior}: frechet {frechet.value:.2f} ± {frechet.se or 0:.2f}")


def inpaintings(model: Any, data: Any, seed: int) -> torch.Tensor:
    """For a hole below and one in the middle: rows of test images, of what is left of them, of fillings."""
    x = data.test.subset(COLUMNS, seed).batch(torch.arange(COLUMNS))
    height, width = x.shape[2:]
    rows = [x]
    for top, left, bottom, right in (
        (height // 2, 0, height, width),
        (height // 4, width // 4, height - height // 4, width - width // 4),
    ):
        hole = torch.zeros(height, width, dtype=torch.bool)
        hole[top:bottom, left:right] = True
        filled = model.inpaint(x, hole, generator(derive(seed, "inpaint"), "cpu"), candidates=32)
        rows += [torch.where(hole, 0.5, x), filled]
    return grid(torch.cat(rows), COLUMNS)


def finished(folder: Path, work: Any) -> Path:
    """The folder, made by `work` under another name, so that one of this name is whole."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        work(partial)
        partial.rename(folder)
    return folder


def train(folder: Path, data: Any, name: str, seed: int) -> None:
    registered, of_model, of_training = MODELS[name]
    with seeded(derive(seed, "create"), "cpu"):
        model = vaezoo.create(registered, image_shape=data.image_shape, **of_model)
    resume = (folder / STATE).exists()
    vaezoo.train(model, data, out=folder, resume=resume, seed=seed, progress=True, **of_training)


def fit(folder: Path, model_folder: Path, data: Any, prior: str, options: dict[str, Any], seed: int) -> None:
    if not folder.exists():
        folder.mkdir(parents=True)
        shutil.copy(model_folder / "model.safetensors", folder)
    name = "gaussian_mixture" if prior == "gaussian" else prior
    vaezoo.fit_prior(
        vaezoo.load(model_folder),
        data,
        name,
        out=folder,
        resume=any(folder.rglob(STATE)),
        seed=seed,
        progress=True,
        **options,
    )


def summary(report: Report, folder: Path, data: str, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a report with their standard errors, and how the prior was trained."""
    names = {metric.format(data): f"sampling/{metric.format(data)}" for metric in METRICS}
    names |= {
        name: f"likelihood/{name}"
        for name in ("log_likelihood", "bits_per_dim", "bits_per_dim_uniform", "bits_per_code", "code_saving")
    }
    metrics = {
        short: {"value": report[name].value, "se": report[name].se, "n": report[name].n}
        for short, name in names.items()
        if name in report
    }
    logs = [json.loads(line) for path in folder.rglob("prior*/**/metrics.jsonl") for line in path.open()]
    validation = [line["validation/loss"] for line in logs if "validation/loss" in line]
    _, of_model, of_training = MODELS[model]
    return {
        "model_options": {**of_model, **of_training},
        "options": options,
        "prior": report.header["model"]["prior"],
        "validation_nll": min(validation) if validation else None,
        "metrics": metrics,
    }


if __name__ == "__main__":
    main()
