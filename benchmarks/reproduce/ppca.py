"""A linear VAE reaches the maximum likelihood of probabilistic PCA (Tipping & Bishop 1999; Lucas et al.
2019).

With a linear decoder, one learned standard deviation and a linear encoder, the largest ELBO is the largest
log-likelihood, which the eigenvalues of the training images' covariance give in closed form. `vaezoo.train`
trains such models of 16, 32 and 64 latents on all 60,000 training images of Fashion-MNIST, pixels in [0, 1];
weights are kept by the loss of 5,000 of the same images, because the claim is about the fit to them. The ELBO
of what it learned is computed without sampling, in float64. So is the log-likelihood of its decoder, which
splits what is missing: decoder, what no diagonal posterior of that decoder reaches (the latents are not along
the principal axes), and the rest of the encoder.

One more run has its standard deviation fixed between two eigenvalues: latents along smaller ones must switch
off, so that as many stay active as there are eigenvalues above the variance.

What is done is not done again, and what was interrupted goes on:

    python benchmarks/reproduce/ppca.py
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vaezoo
from vaezoo.checkpoint import write_text
from vaezoo.data import ImageData, ResidentSplit
from vaezoo.evaluation.latents import active_units
from vaezoo.likelihoods import LOG_SCALE_RANGE
from vaezoo.run import STATE

RESULT = Path(__file__).parents[1] / "results" / "ppca.json"
PUBLISHED = {16: (370.50, 370.27), 32: (455.58, 455.28), 64: (545.55, 544.42)}  # train, test
EPOCHS = {16: 40, 32: 40, 64: 80}  # more latents take longer to find their axes
TOLERANCE = 1.0  # nats per image
PIXELS = 784
FIXED = 32  # latents of the run with a fixed standard deviation
VALIDATION = 5000
PROTOCOL = (
    "trained on all 60,000 training images; the kept weights have the best loss on some of them; optimum "
    "from the eigenvalues of their covariance, mean ELBO over all images of a split in closed form, both "
    "in float64"
)
K, IMAGES = 100, 1000  # importance samples, and test images that they are for
TRAINING: dict[str, Any] = {
    "batch_size": 250,
    "lr": 1e-2,
    "lr_schedule": "cosine",
    "betas": (0.9, 0.99),
    "weight_ema": 0.999,
    "log_steps": 240,
    "seed": 0,
}


def all_images() -> ImageData:
    """Fashion-MNIST with all training images for training, and the first of them (in a random order) again to
    choose the weights by."""
    data = vaezoo.load_data("fashion_mnist", validation=VALIDATION)
    every = [split.batch(torch.arange(len(split))) for split in (data.validation, data.train)]
    train = ResidentSplit((torch.cat(every) * 255).round().byte())
    return replace(data, train=train, validation=train.first(VALIDATION))


class Moments:
    """Mean and covariance of images, and the principal axes of those of training. float64."""

    def __init__(self, data: ImageData) -> None:
        self.train, self.test = (
            split.batch(torch.arange(len(split))).flatten(1).double() for split in (data.train, data.test)
        )
        self.mean = self.train.mean(0)
        centred = self.train - self.mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        self.eigenvalues, self.axes = values.flip(0), vectors.flip(1)

    def optimum(self, latents: int, variance: float | None = None) -> dict[str, float]:
        """The largest mean log-likelihood of the training images, and that of the test images there.
        Without a variance, also the best one: the mean of the eigenvalues that are left out."""
        kept = latents
        if variance is None:
            variance = self.eigenvalues[latents:].mean().item()
        else:
            kept = min(latents, int((self.eigenvalues > variance).sum()))
        scales = torch.full_like(self.eigenvalues, variance)
        scales[:kept] = self.eigenvalues[:kept]
        found = {"variance": variance, "active_units": kept}
        for name, images in (("train", self.train), ("test", self.test)):
            power = ((images - self.mean) @ self.axes).square().mean(0)
            nats = -0.5 * (math.log(2 * math.pi) + scales.log() + power / scales).sum()
            found[name] = nats.item()
        return found


def exact(model: Any, images: Tensor) -> dict[str, Any]:
    """ELBO of each image and exact log-likelihood of the decoder, images [N, 784], float64; and the part of
    their difference that no diagonal posterior avoids. Nats."""
    encoder, decoder = model.encoder[1], model.decoder[0]
    to_latent, start, weight, bias = (
        p.detach().double() for p in (encoder.weight, encoder.bias, decoder.weight, decoder.bias)
    )
    # As in vaezoo.likelihoods: a learned scale has a floor.
    floor = math.exp(LOG_SCALE_RANGE[0]) if model.config.likelihood == "gaussian_learned" else 0.0
    variance = (model.likelihood.log_scale.detach().double().exp() + floor).square()
    mean, log_variance = (images @ to_latent.T + start).chunk(2, 1)
    errors = (images - bias - mean @ weight.T).square().sum(1) + log_variance.exp() @ weight.square().sum(0)
    distortion = 0.5 * (PIXELS * (2 * math.pi * variance).log() + errors / variance)
    rate = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    precision = weight.T @ weight + variance * torch.eye(weight.shape[1], dtype=torch.float64)
    projected = (images - bias) @ weight
    inside = (projected * torch.linalg.solve(precision, projected.T).T).sum(1)
    distance = ((images - bias).square().sum(1) - inside) / variance
    volume = torch.logdet(precision) + (PIXELS - weight.shape[1]) * variance.log()
    return {
        "elbo": -distortion - rate,
        "log_likelihood": -0.5 * (PIXELS * math.log(2 * math.pi) + volume + distance),
        "not_diagonal": 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item(),
        "variance": variance.item(),
        "means": mean,
    }


def average(values: Tensor) -> dict[str, float]:
    return {"value": values.mean().item(), "se": (values.std() / len(values) ** 0.5).item()}


def train(model: Any, data: ImageData, folder: Path, **options: Any) -> dict[str, float]:
    """Train to the end, from where an earlier process came to. Seconds of all processes together."""
    path = folder / "seconds.json"
    spent = json.loads(path.read_text()) if path.exists() else {"wall": 0.0, "cpu": 0.0}
    began = {"wall": time.monotonic(), "cpu": time.process_time()}
    resume = (folder / STATE).exists()
    try:
        vaezoo.train(model, data, out=folder, resume=resume, device="cpu", **options)
    finally:
        now = {"wall": time.monotonic(), "cpu": time.process_time()}
        spent = {name: round(spent[name] + now[name] - began[name], 1) for name in spent}
        write_text(path, json.dumps(spent) + "\n")
    return spent


def make(latents: int, likelihood: str, scale: float) -> Any:
    torch.manual_seed(0)
    return vaezoo.create(
        "vae",
        latent_dim=latents,
        network_options={"hidden": ()},
        likelihood=likelihood,
        likelihood_scale=scale,
    )


@torch.no_grad()
def run(model: Any, best: dict[str, float], moments: Moments, seconds: dict[str, float]) -> dict[str, Any]:
    """What a trained model reaches, beside the optimum."""
    train, test = exact(model, moments.train), exact(model, moments.test)
    elbo = {"train": train["elbo"].mean().item(), "test": test["elbo"].mean().item()}
    likelihood = train["log_likelihood"].mean().item()
    torch.manual_seed(0)
    images = moments.test.float().view(-1, 1, 28, 28)
    q = model.encode(images)
    z = q.rsample()
    drawn = -model.distortion(images, z) - model.rate(q, z)
    bound = model.log_prob(images[:IMAGES], K)
    return {
        "optimum": best,
        "elbo": elbo,
        "missing": {name: best[name] - elbo[name] for name in elbo},
        "missing_parts": {
            "decoder": best["train"] - likelihood,
            "not_diagonal": train["not_diagonal"],
            "encoder": likelihood - train["not_diagonal"] - elbo["train"],
        },
        "variance": train["variance"],
        "active_units": int(active_units(test["means"]).sum()),
        "drawn_elbo - elbo": average(drawn.double() - test["elbo"]),
        "log_likelihood - bound": {
            "k": K,
            "n": IMAGES,
            **average(test["log_likelihood"][:IMAGES] - bound.double()),
        },
        "seconds": seconds,
        "matched": all(best[name] - elbo[name] <= TOLERANCE for name in elbo)
        and elbo["train"] <= best["train"]
        and int(active_units(test["means"]).sum()) == best["active_units"],
    }


def write(result: dict[str, Any]) -> None:
    order = sorted(
        result["runs"], key=lambda name: (not name.isdigit(), result["runs"][name]["latents"], name)
    )
    result["runs"] = {name: result["runs"][name] for name in order}
    result["matched"] = all(name in order and result["runs"][name]["matched"] for name in result["targets"])
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--latents", type=int, nargs="*", default=sorted(PUBLISHED), choices=sorted(PUBLISHED)
    )
    parser.add_argument(
        "--fixed-epochs", type=int, default=20, help="of the fixed standard deviation; 0: none"
    )
    parser.add_argument(
        "--fixed-lr",
        type=float,
        default=2e-3,
        help="its learning rate: weights of a latent that is barely worth its rate drown in larger steps",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ppca"))
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    data = all_images()
    moments = Moments(data)
    result: dict[str, Any] = {
        "what": "ELBO of a linear VAE on Fashion-MNIST, pixels in [0, 1], nats per image, without sampling",
        "targets": {f"{z}": dict(zip(("train", "test"), nats)) for z, nats in PUBLISHED.items()},
        "tolerance": TOLERANCE,
        "protocol": PROTOCOL,
        "matched": False,
        "training": TRAINING,
        "runs": {},
        "data": data.header(),
        "validation": f"{VALIDATION} of the training images again",
        "versions": {"vaezoo": vaezoo.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }
    if RESULT.exists():
        result["runs"] = json.loads(RESULT.read_text())["runs"]
    for latents in args.latents:
        model = make(latents, "gaussian_learned", 0.15)
        epochs = EPOCHS[latents]
        seconds = train(model, data, args.out / f"{latents}-{epochs}", **TRAINING | {"epochs": epochs})
        found = run(model, moments.optimum(latents), moments, seconds)
        result["runs"][f"{latents}"] = {"latents": latents, "epochs": epochs, **found}
        write(result)
        print(json.dumps(result["runs"][f"{latents}"], indent=1), flush=True)
    if args.fixed_epochs:
        # The widest gap between eigenvalues, by their ratio, that leaves at least a quarter of latents off.
        ratios = moments.eigenvalues[4 : FIXED * 3 // 4] / moments.eigenvalues[5 : FIXED * 3 // 4 + 1]
        kept = 5 + int(ratios.argmax())
        variance = (moments.eigenvalues[kept - 1] * moments.eigenvalues[kept]).sqrt().item()
        model = make(FIXED, "gaussian", variance**0.5)
        folder = args.out / f"fixed-{args.fixed_epochs}-{args.fixed_lr}"
        name = f"fixed variance, lr {args.fixed_lr}"
        seconds = train(model, data, folder, **TRAINING | {"epochs": args.fixed_epochs, "lr": args.fixed_lr})
        found = run(model, moments.optimum(FIXED, variance), moments, seconds)
        about = {"latents": FIXED, "epochs": args.fixed_epochs, "lr": args.fixed_lr}
        result["runs"][name] = {**about, **found}
        write(result)
        print(json.dumps(result["runs"][name], indent=1), flush=True)


if __name__ == "__main__":
    main()
