"""Train the weights that come with the package; write them, their manifest, and the pictures of their cards.

    python benchmarks/pretrained.py --out runs/pretrained                            all, hours on two cores
    python benchmarks/pretrained.py --out runs/pretrained --only vae/fashion_mnist   one of them

Every model is trained in a folder of its own under --out: what is interrupted goes on, and what is finished
is not repeated. Weights are kept in half precision, and all scores are measured on the file as it is kept."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import vaezoo
from vaezoo.checkpoint import read_header, write_text
from vaezoo.evaluation.report import Report
from vaezoo.plots import reconstructions, samples, save_grid
from vaezoo.pretrained import MANIFEST, PACKAGED, Weights, manifest
from vaezoo.random import derive, seeded
from vaezoo.run import STATE

PICTURES = Path(__file__).parents[1] / "docs" / "assets" / "pretrained"
LICENCE = "Apache-2.0"
AXES = {
    "fashion_mnist": ["reconstruction", "likelihood", "sampling", "latents"],
    "sprites": ["reconstruction", "sampling", "latents", "disentanglement"],
}
#: Where they differ from the recipes: options of the model, of its training, and of the prior that is fitted
#: to it with its training; None: the model keeps its own.
ENTRIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    "ae/fashion_mnist": ({}, {}, {}),
    "vae/fashion_mnist": ({}, {}, None),
    "beta_vae/fashion_mnist": ({}, {}, None),
    "conv_vae/fashion_mnist": ({"network_options": {"hidden": 64}}, {"epochs": 8}, None),
    "vq_vae/fashion_mnist": ({}, {}, {"width": 64, "epochs": 8}),
    "vq_vae2/fashion_mnist": (
        {"codes": 128, "channels": 32, "residual_channels": 16},
        {"epochs": 3, "batch_size": 64},
        {"width": 48, "depth": 3, "dropout": 0.0, "epochs": 3, "batch_size": 64},
    ),
    "beta_tc_vae/sprites": ({"network": "conv"}, {"epochs": 1, "batch_size": 64}, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=ENTRIES, default=ENTRIES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    for key in args.only:
        entry = make(args.out, key, args.seed)
        everything = manifest() | {(entry.model, entry.data): entry}
        in_order = [everything[tuple(k.split("/"))] for k in ENTRIES if tuple(k.split("/")) in everything]
        write_text(MANIFEST, json.dumps([asdict(weights) for weights in in_order], indent=1) + "\n")
        manifest.cache_clear()
        print(f"{key}: {entry.bytes / 1e6:.2f} MB")


def make(out: Path, key: str, seed: int) -> Weights:
    """Train what is not trained, halve, measure, draw."""
    name, data_name = key.split("/")
    of_model, of_training, of_prior = ENTRIES[key]
    data = vaezoo.load_data(data_name)
    folder = out / f"{name}-{data_name}"
    trained = folder / "trained"
    if not trained.exists():
        with seeded(derive(seed, "create"), "cpu"):
            model = vaezoo.create(name, image_shape=data.image_shape, **of_model)
        resume = (folder / STATE).exists()
        vaezoo.train(model, data, out=folder, resume=resume, seed=seed, progress=True, **of_training)
        if of_prior is not None:
            resume = any(folder.glob(f"priors/*/{STATE}"))
            vaezoo.fit_prior(
                vaezoo.load(folder), data, out=folder, resume=resume, seed=seed, progress=True, **of_prior
            )
        trained.touch()
    file = PACKAGED / f"{name}-{data_name}.safetensors"
    model = vaezoo.load(folder)
    info = read_header(folder / "model.safetensors")["info"]
    vaezoo.save(model.half(), file, {**info, "licence": LICENCE})
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()

    measured = folder / f"report-{sha256[:16]}.json"
    model = vaezoo.load(file)
    if not measured.exists():
        axes = AXES[data_name]
        report = vaezoo.evaluate(model, data, axes=axes, samples=100, seed=seed, progress=True)
        report.save(measured)
    report = Report.load(measured)
    scores = {
        metric: {"value": m.value, "se": m.se, "n": m.n, "unit": m.unit}
        for metric, m in report.metrics.items()
    }
    save_grid(samples(model, 64, seed, 16), PICTURES / f"{name}-{data_name}-samples.png")
    save_grid(
        reconstructions(model, data.test.subset(32, seed).batch(torch.arange(32)), 16),
        PICTURES / f"{name}-{data_name}-pairs.png",
    )
    prior_recipe = None
    if of_prior is not None:
        prior_recipe = {"name": report.header["model"]["prior"]["name"], **info["prior_train"]}
    return Weights(
        model=name,
        data=data_name,
        file=file.name,
        sha256=sha256,
        bytes=file.stat().st_size,
        licence=LICENCE,
        recipe={"train": info["train"], "prior": prior_recipe},
        scores=scores,
    )


if __name__ == "__main__":
    main()
