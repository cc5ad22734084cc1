"""The figures of Norouzi et al. 2020 (Exemplar VAE) for Fashion-MNIST, binarised anew in every batch:
-log p(x) of the test images with 5,000 importance samples, nats per image.

    VAE with a standard normal prior     228.70 ± .15
    VAE with a VampPrior of 500          227.35 ± .05

Early stopping takes hours on a CPU, so the two priors are also compared at equal epochs, from the weights of
the best validation loss up to there:

    python benchmarks/reproduce/exemplar_fashion.py --prior standard_normal --epochs 150 2000
    python benchmarks/reproduce/exemplar_fashion.py --prior vamp --epochs 150

Both write benchmarks/results/exemplar_fashion.json, which holds all that is in the folder of runs. What is
done is not done again, and what was interrupted goes on; so does a run that is called with more epochs or
samples. With --train, a process trains alone, and another may evaluate the first limit while it goes on.

What is not as in the published code: one layer gives mean and log-variance, so their gradients are normalised
together; the KL weight rises with every step, not every epoch; the KL to N(0, I) is in closed form; and
pseudo-inputs start at training images.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vaezoo
from vaezoo.checkpoint import SCHEMA, WEIGHTS, read_header, read_tensors, write_tensors, write_text
from vaezoo.data import ImageData
from vaezoo.evaluation.report import Metric, average
from vaezoo.random import derive, generator, seeded
from vaezoo.run import STATE

RESULT = Path(__file__).parents[1] / "results" / "exemplar_fashion.json"
PRIORS = ("standard_normal", "vamp")
TARGETS = {
    "standard_normal": {"published": 228.70, "se": 0.15, "accepted": [227.9, 230.2]},
    "standard_normal - vamp": {"published": 1.35, "accepted": [0.8, 1.9]},
}
DATA: dict[str, Any] = {"binarize": "dynamic", "validation": 10_000}
BATCH, STEPS, WARMUP = 100, 500, 100  # images a step, steps an epoch, epochs
MODEL: dict[str, Any] = {
    "network": "gated",
    "latent_dim": 40,
    "log_variance_bounds": (-6.0, 2.0),
    "kl_warmup_steps": WARMUP * STEPS,
}
TRAINING: dict[str, Any] = {
    "batch_size": BATCH,
    "lr": 5e-4,
    "lr_schedule": "constant",
    "normalize_gradients": True,
    "patience": 50,
    "patience_after": WARMUP,
    "log_steps": STEPS,
}
ROUND = 500  # importance samples of all images, after which the sums are saved


class Clock:
    """Seconds that processes spent on one thing, one after the other, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        spent = json.loads(path.read_text()) if path.exists() else {"wall_seconds": 0.0, "cpu_seconds": 0.0}
        self.began = {name: now - spent[name] for name, now in self.now().items()}

    def now(self) -> dict[str, float]:
        return {"wall_seconds": time.perf_counter(), "cpu_seconds": time.process_time()}

    def read(self) -> dict[str, float]:
        spent = {name: round(now - self.began[name], 1) for name, now in self.now().items()}
        write_text(self.path, json.dumps(spent) + "\n")
        return spent


def train(prior: str, epochs: int, data: ImageData, out: Path) -> None:
    """Train to the limit or to the stop, and set the best weights aside, because the run may go on."""
    facts, folder = out / f"{prior}-{epochs}.json", out / prior
    if facts.exists():
        return
    with seeded(derive(0, "create"), "cpu"):
        model = vaezoo.create("vae", prior=prior, **MODEL)
    clock, resume = Clock(folder / "seconds.json"), (folder / STATE).exists()
    try:
        run = vaezoo.train(model, data, epochs=epochs, out=folder, resume=resume, device="cpu", **TRAINING)
    finally:
        seconds = clock.read()
    if run.steps > epochs * STEPS:
        raise SystemExit(f"{folder} is past epoch {epochs} already; give another --out")
    shutil.copy(folder / WEIGHTS, facts.with_suffix(".safetensors"))
    found = {
        "epochs": run.steps // STEPS,
        "ended": "early stopping" if run.steps < epochs * STEPS else "epoch limit",
        "best_epoch": run.best_step // STEPS,
        "validation_loss": run.best_loss,
        "training": seconds,
    }
    write_text(facts, json.dumps(found) + "\n")
    print(facts.stem, found, flush=True)


@torch.no_grad()
def evaluate(name: str, samples: int, data: ImageData, out: Path) -> None:
    """Add up log weights p(x|z) p(z) / q(z|x) of every test image, until there are as many as asked for."""
    path, clock = out / f"{name}-bound.safetensors", Clock(out / f"{name}-bound.json")
    nothing = torch.zeros(len(data.test), dtype=torch.float64)
    sums, done = {"log_sum": nothing - math.inf, "elbo_sum": nothing}, 0
    if path.exists():
        sums, done = read_tensors(path), read_header(path)["samples"]
    model = vaezoo.load(out / f"{name}.safetensors")
    while done < samples:
        draws = generator(derive(0, "importance", done), "cpu")
        for rows in torch.arange(len(data.test)).split(BATCH):
            log_weights = model.log_weights(data.test.batch(rows), ROUND, draws).double()
            sums["log_sum"][rows] = torch.logaddexp(sums["log_sum"][rows], log_weights.logsumexp(0))
            sums["elbo_sum"][rows] += log_weights.sum(0)
        done += ROUND
        write_tensors(path, sums, {"schema": SCHEMA, "samples": done})
        clock.read()
        print(name, f"k={done}", score(name, out)["nll"], flush=True)


def bounds(name: str, out: Path) -> tuple[dict[str, Tensor], int]:
    """-log p(x) and the negative ELBO of every test image, [N] nats, and the number of samples."""
    path = out / f"{name}-bound.safetensors"
    sums, k = read_tensors(path), read_header(path)["samples"]
    return {"nll": math.log(k) - sums["log_sum"], "negative_elbo": -sums["elbo_sum"] / k}, k


def score(name: str, out: Path) -> dict[str, Any]:
    """What is known of a run up to one limit."""
    each, k = bounds(name, out)
    facts = json.loads((out / f"{name}.json").read_text())
    seconds = json.loads((out / f"{name}-bound.json").read_text())
    return {
        **facts,
        "evaluation": seconds,
        "k": k,
        "n": len(each["nll"]),
        **{key: mean(values) for key, values in each.items()},
    }


def mean(values: Tensor) -> dict[str, Any]:
    """Over images, with its standard error."""
    found = average(values, "nats per image")
    assert isinstance(found, Metric), found
    return {"value": found.value, "se": found.se}


def within(value: float, target: str) -> bool:
    low, high = TARGETS[target]["accepted"]
    return low <= value <= high


def summarise(samples: int, data: ImageData, out: Path) -> dict[str, Any]:
    """All with so many samples in the folder: every run at every limit, and the priors at equal epochs."""
    runs: dict[str, Any] = {prior: {} for prior in PRIORS}
    scored = [path.stem.removesuffix("-bound").split("-") for path in out.glob("*-bound.safetensors")]
    for prior, epochs in sorted(scored, key=lambda run: int(run[1])):
        entry = score(f"{prior}-{epochs}", out)
        if entry["k"] == samples:
            runs[prior][epochs] = entry
    for entry in runs["standard_normal"].values():
        entry["matched"] = within(entry["nll"]["value"], "standard_normal")
    equal = {}
    for epochs in [e for e in runs["standard_normal"] if e in runs["vamp"]]:
        normal, vamp = (bounds(f"{prior}-{epochs}", out)[0]["nll"] for prior in PRIORS)
        difference = mean(normal - vamp)  # of pairs: both have the same images
        equal[epochs] = {**difference, "matched": within(difference["value"], "standard_normal - vamp")}
    return {
        "what": "test -log p(x) of Fashion-MNIST, dynamically binarised, nats per image",
        "k": samples,
        "targets": TARGETS,
        "runs": runs,
        "standard_normal - vamp": equal,
        "model": MODEL,
        "training": TRAINING,
        "data": data.header(),
        "versions": {"vaezoo": vaezoo.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prior", choices=PRIORS, required=True)
    parser.add_argument("--epochs", nargs="+", type=int, default=[2000], help="limits; each is evaluated")
    parser.add_argument("--samples", type=int, default=5000, help=f"k, a multiple of {ROUND}")
    parser.add_argument("--train", action="store_true", help="train, and evaluate nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/exemplar_fashion"))
    args = parser.parse_args()
    if args.samples < ROUND or args.samples % ROUND:
        parser.error(f"--samples {args.samples} is not a multiple of {ROUND}")
    torch.set_flush_denormal(True)
    data = vaezoo.load_data("fashion_mnist", **DATA)
    for epochs in sorted(args.epochs):
        train(args.prior, epochs, data, args.out)
        if not args.train:
            evaluate(f"{args.prior}-{epochs}", args.samples, data, args.out)
            result = summarise(args.samples, data, args.out)
            write_text(RESULT, json.dumps(result, indent=1) + "\n")
            print(json.dumps({key: result[key] for key in ("runs", "standard_normal - vamp")}, indent=1))


if __name__ == "__main__":
    main()
