"""Which variant is how good? Studies of models x data sets x seeds, trained and measured alike.

    python benchmarks/compare.py --out runs/studies                                  all, hours on two cores
    python benchmarks/compare.py --out runs/studies --study variants --data mnist    a part of it

Every cell has a folder of its own under --out, where an interrupted one goes on, and leaves a JSON file in
benchmarks/results/compare; a cell that has one is not run again. So several processes may share the work by
--study, --data and --seeds. `benchmarks/report.py` makes the tables and figures of the docs from these files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import vaezoo
from vaezoo.checkpoint import write_text
from vaezoo.data import ImageData
from vaezoo.plots import interpolations, reconstructions, samples, save_grid, traversals
from vaezoo.random import derive, seeded
from vaezoo.run import STATE

RESULTS = Path(__file__).parent / "results" / "compare"
PICTURES = Path(__file__).parents[1] / "docs" / "assets" / "gallery"
COLUMNS = 12
#: What is drawn of the first seed, by study.
DRAWN = {
    "variants": ("reconstructions", "samples", "traversals", "interpolations"),
    "beta": ("reconstructions", "samples"),
}

#: As many training images of each, so that an epoch has as many steps.
DATA: dict[str, dict[str, Any]] = {
    "mnist": {},
    "fashion_mnist": {},
    "sprites": {"size": 32, "train_size": 54_000, "validation": 6_000, "test_size": 10_000},
}
#: One epoch, the same number of steps for all; learning rates are those of the recipes.
TRAINING: dict[str, Any] = {"epochs": 1, "batch_size": 32}
EVALUATION: dict[str, Any] = {"n": 4000, "samples": 50, "likelihood_n": 400}
SEEDS = (0, 1, 2)

#: The likelihood of all, so that distortions are the same quantity; small enough for two cores.
CODES = {"likelihood": "bernoulli", "codes": 128, "channels": 32, "residual_channels": 16}
PRIOR = {"width": 32, "depth": 2, "epochs": 1, "batch_size": 32}


@dataclass(frozen=True)
class Cell:
    """One model with its options, to be trained with one seed on one data set.

    prior: options of its prior and of the training of that; None: the model keeps its own, or has none."""

    study: str
    data: str
    model: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] | None = None
    label: str = ""

    @property
    def name(self) -> str:
        return f"{self.study}/{self.data}/{self.label or self.model}-seed{self.seed}"


#: Options of the models, where they differ from the defaults, and of the priors that are fitted.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "ae": ({}, {}),
    "vae": ({}, None),
    "beta_vae": ({}, None),
    "beta_tc_vae": ({}, None),
    "factor_vae": ({"discriminator_width": 256, "discriminator_depth": 4}, None),
    "conv_vae": ({}, None),
    "vq_vae": (CODES, PRIOR),
    "vq_vae2": (CODES, PRIOR),
}
BETAS = (0.1, 0.3, 1, 2, 4, 8, 16)
LATENT_DIMS = (2, 10, 20, 50, 100)
CODEBOOKS = (16, 64, 256, 1024)


def studies() -> Iterator[Cell]:
    """All cells, the first seed of everything first."""
    for seed in SEEDS:
        for data in DATA:
            for model, (options, prior) in VARIANTS.items():
                if model == "vq_vae2" and data == "sprites":
                    options = options | {"downsample": 4}  # as coarse a grid for 32 pixels as for 28
                yield Cell("variants", data, model, seed, options, prior)
        for beta in BETAS:
            yield Cell("beta", "fashion_mnist", "beta_vae", seed, {"beta": beta}, None, f"beta_vae-{beta}")
        for model, data, prior in (
            ("vae", "fashion_mnist", None),
            ("ae", "fashion_mnist", {}),
            ("vae", "mnist", None),
        ):
            for dim in LATENT_DIMS:
                yield Cell("latent_dim", data, model, seed, {"latent_dim": dim}, prior, f"{model}-{dim:03}")
        for codes in CODEBOOKS:
            options = CODES | {"codes": codes}
            yield Cell("codebook", "fashion_mnist", "vq_vae", seed, options, None, f"vq_vae-{codes:04}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--study", nargs="+", choices=["variants", "beta", "latent_dim", "codebook"])
    parser.add_argument("--data", nargs="+", choices=DATA)
    parser.add_argument("--model", nargs="+", choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    loaded: dict[str, ImageData] = {}
    for cell in studies():
        asked = (
            (args.study, cell.study),
            (args.data, cell.data),
            (args.model, cell.model),
            (args.seeds, cell.seed),
        )
        if any(chosen is not None and value not in chosen for chosen, value in asked):
            continue
        result = RESULTS / f"{cell.name}.json"
        if result.exists():
            continue
        if cell.data not in loaded:
            loaded[cell.data] = vaezoo.load_data(cell.data, **DATA[cell.data])
        began = time.monotonic()
        measured = run(cell, loaded[cell.data], args.out / cell.name)
        write_text(result, json.dumps(measured, indent=1) + "\n")
        print(f"{cell.name}: {time.monotonic() - began:.0f} s", flush=True)


def run(cell: Cell, data: ImageData, folder: Path) -> dict[str, Any]:
    """Train what is not trained yet, measure, draw the pictures of the first seed."""
    with seeded(derive(cell.seed, "create"), "cpu"):
        model = vaezoo.create(cell.model, image_shape=data.image_shape, **cell.options)

    def train() -> dict[str, Any]:
        resume = (folder / STATE).exists()
        run = vaezoo.train(model, data, out=folder, resume=resume, seed=cell.seed, progress=False, **TRAINING)
        return {"steps": run.steps, "images_per_second": round(run.images_per_second)}

    def fit() -> dict[str, Any]:
        assert cell.prior is not None
        resume = any(folder.glob(f"priors/*/{STATE}"))
        run = vaezoo.fit_prior(
            vaezoo.load(folder),
            data,
            out=folder,
            resume=resume,
            seed=cell.seed,
            progress=False,
            **cell.prior,
        )
        return {"steps": run.steps}

    stages = {"training": once(folder / "training.json", train)}
    if cell.prior is not None:
        stages["prior_training"] = once(folder / "prior.json", fit)
    model = vaezoo.load(folder)
    axes = ["reconstruction", "likelihood", "sampling", "latents"]
    axes += ["disentanglement"] if data.factors else []
    report = vaezoo.evaluate(model, data, axes=axes, seed=cell.seed, **EVALUATION)
    if cell.study in DRAWN and cell.seed == SEEDS[0]:
        draw(model, data, cell)
    return {
        "study": cell.study,
        "model": cell.model,
        "options": cell.options,
        "seed": cell.seed,
        "training_options": TRAINING,
        "prior_options": cell.prior,
        **stages,
        "report": replace(report, details={}).to_dict(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def once(file: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do a part of a cell, if it is not done, and keep what it returns with its times; they are
    unknown where it was interrupted."""
    if not file.exists():
        begun = file.with_suffix(".begun")
        resumed = begun.exists()
        write_text(begun, "")
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        seconds = time.perf_counter() - wall, time.process_time() - processor
        times = (None, None) if resumed else (round(seconds[0], 2), round(seconds[1], 2))
        result |= {"wall_seconds": times[0], "processor_seconds": times[1]}
        write_text(file, json.dumps(result) + "\n")
    return json.loads(file.read_text())


def draw(model: Any, data: ImageData, cell: Cell) -> None:
    """The same test images for every model; samples are not selected."""
    many = data.test.subset(20 * COLUMNS, 0).batch(torch.arange(20 * COLUMNS))
    x = many[:COLUMNS]
    pictures = {
        "reconstructions": lambda: reconstructions(model, x, COLUMNS, errors=False),
        "samples": lambda: samples(model, 2 * COLUMNS, 0, COLUMNS),
        "traversals": lambda: traversals(model, many, 4, COLUMNS - 1),
        "interpolations": lambda: interpolations(model, x[:6], COLUMNS - 1),
    }
    folder = PICTURES / (cell.data if cell.study == "variants" else cell.study)
    for name in DRAWN[cell.study]:
        save_grid(pictures[name](), folder / f"{cell.label or cell.model}-{name}.png")


if __name__ == "__main__":
    main()
