"""Can the suite tell disentangling models apart? Five paired seeds of four models on rendered sprites.

A seed gives every model the same images in the same order, and the same start of encoder and decoder. Cells
that are there are not run again, and an interrupted one goes on, so two processes may share the work:

    python benchmarks/reproduce/sprites_disentanglement.py --train vae beta_vae beta_tc_vae
    python benchmarks/reproduce/sprites_disentanglement.py --train factor_vae
    python benchmarks/reproduce/sprites_disentanglement.py

The last one trains what is missing, evaluates all, and writes results/sprites_disentanglement.json. The total
correlation of every model is the same estimate, whatever the model was trained on. Where the rate is above
the logarithm of the number of images, it is too high (see docs/evaluation.md), so it is also taken from
100,000 training images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import vaezoo
from vaezoo.data import ImageData
from vaezoo.distributions import DiagonalGaussian
from vaezoo.evaluation import Report
from vaezoo.evaluation.aggregate import aggregate_log_probs
from vaezoo.random import derive, generator, seeded

RESULT = Path(__file__).parents[1] / "results" / "sprites_disentanglement.json"
MODELS: dict[str, dict[str, Any]] = {
    "vae": {},
    "beta_vae": {"beta": 4.0},
    "beta_tc_vae": {"beta": 6.0},
    "factor_vae": {"gamma": 10.0},
}
SEEDS = range(5)
DATA: dict[str, Any] = {"size": 32, "train_size": 128_000, "validation": 4_000, "test_size": 10_000}
NETWORK: dict[str, Any] = {"network": "mlp", "latent_dim": 10}
TRAINING: dict[str, Any] = {"epochs": 4, "batch_size": 64, "lr": 1e-3}
AXES = ("reconstruction", "likelihood", "latents", "disentanglement")
MANY, POINTS = 100_000, 1_000  # images of the aggregate posterior, and z at which it is computed
LARGE = f"latents/total_correlation_{MANY}"


def train(name: str, seed: int, data: ImageData, folder: Path) -> None:
    """Train one cell, or what is left of it."""
    if (folder / "seconds.json").exists():
        return
    with seeded(derive(seed, "create"), "cpu"):
        model = vaezoo.create(name, image_shape=data.image_shape, **NETWORK, **MODELS[name])
    began = time.monotonic()
    resume = (folder / "state.safetensors").exists()
    run = vaezoo.train(model, data, out=folder, resume=resume, seed=seed, progress=False, **TRAINING)
    seconds = {"steps": run.steps, "seconds": None if resume else round(time.monotonic() - began, 1)}
    (folder / "seconds.json").write_text(json.dumps(seconds) + "\n")
    print(f"{name}, seed {seed}: validation loss {run.best_loss:.2f}, {seconds}", flush=True)


def evaluate(data: ImageData, seed: int, folder: Path) -> Report:
    """The report of one cell. Images and factors are the same for every cell."""
    path = folder / "report.json"
    if not path.exists():
        report = vaezoo.evaluate(vaezoo.load(folder), data, axes=AXES, likelihood_n=100, seed=0)
        report.save(path)
    return Report.load(path)


@torch.no_grad()
def total_correlation(data: ImageData, folder: Path) -> float:
    """Of q(z) as the mean over `MANY` images, nats."""
    path = folder / "total_correlation.json"
    if not path.exists():
        model = vaezoo.load(folder)
        rows = torch.arange(MANY).split(1000)
        parts = [model.encode(data.train.batch(indices)) for indices in rows]
        q = DiagonalGaussian(torch.cat([p.mean for p in parts]), torch.cat([p.log_variance for p in parts]))
        noise = generator(derive(0, "points"), "cpu")
        points = q.sample(generator=noise)[torch.randperm(MANY, generator=noise)[:POINTS]]
        joint, marginals = aggregate_log_probs(q, points)
        path.write_text(json.dumps((joint - marginals.sum(1)).mean().item()) + "\n")
    return json.loads(path.read_text())


def summarise(values_of: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Every metric's mean, spread and values over seeds; in how many pairs beta-TCVAE is above the VAE."""
    rows: dict[str, Any] = {}
    for metric, values in values_of.items():
        rows[metric] = {
            name: {"mean": statistics.fmean(v), "sd": statistics.stdev(v), "values": v}
            for name, v in values.items()
        }
        pairs = zip(values["beta_tc_vae"], values["vae"])
        rows[metric]["beta_tc_vae above vae"] = sum(a > b for a, b in pairs)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--train", nargs="+", choices=MODELS, help="train these alone, and evaluate nothing")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS, help="of --train")
    parser.add_argument("--out", type=Path, default=Path("runs/sprites_disentanglement"))
    args = parser.parse_args()
    data = vaezoo.load_data("sprites", **DATA)
    for seed in args.seeds if args.train else SEEDS:
        for name in args.train or MODELS:
            train(name, seed, data, args.out / f"{name}-{seed}")
    if args.train:
        return

    reports = {name: {s: evaluate(data, s, args.out / f"{name}-{s}") for s in SEEDS} for name in MODELS}
    metrics = sorted(set.intersection(*({*r.metrics} for cells in reports.values() for r in cells.values())))
    values = {m: {n: [cells[s][m].value for s in SEEDS] for n, cells in reports.items()} for m in metrics}
    values[LARGE] = {n: [total_correlation(data, args.out / f"{n}-{s}") for s in SEEDS] for n in MODELS}
    rows = summarise(values)
    above = rows["disentanglement/mig"]["beta_tc_vae above vae"]
    lower = len(SEEDS) - rows[LARGE]["beta_tc_vae above vae"]
    result = {
        "what": "sprites at 32x32, four models, five paired seeds; quick protocol",
        "claims": {
            "MIG of beta_tc_vae above that of vae in at least 4 of 5 seeds": above >= 4,
            "total correlation of beta_tc_vae below that of vae in every seed": lower == len(SEEDS),
        },
        "pairs": {"MIG above": above, "total correlation below": lower, "of": len(SEEDS)},
        "models": MODELS,
        "network": NETWORK,
        "training": {**TRAINING, "steps": DATA["train_size"] // TRAINING["batch_size"] * TRAINING["epochs"]},
        "seconds": {
            f"{n}-{s}": json.loads((args.out / f"{n}-{s}" / "seconds.json").read_text())["seconds"]
            for n in MODELS
            for s in SEEDS
        },
        "data": data.header(),
        "protocol": reports["vae"][0].header["protocol"],
        "metrics": rows,
        "versions": {"vaezoo": vaezoo.__version__, "torch": torch.__version__},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for metric, row in rows.items():
        cells = "  ".join(f"{name} {row[name]['mean']:.4g} ± {row[name]['sd']:.2g}" for name in MODELS)
        print(f"{metric}: {cells}  (beta_tc_vae above vae: {row['beta_tc_vae above vae']} of {len(SEEDS)})")
    print(json.dumps(result["claims"], indent=1))


if __name__ == "__main__":
    main()
