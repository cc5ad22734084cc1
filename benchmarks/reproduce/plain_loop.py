"""Does the zoo's trainer learn as well as a plain loop? `vae` on Fashion-MNIST against thirty lines by hand.

Both train the same network from the same kind of start on the same 54,000 images for the same epochs; the
plain loop knows nothing of vaezoo. Both are then scored by the same function, written out here: the negative
ELBO of the grey-level test images in nats per image. Writes benchmarks/results/plain_loop.json.

    python benchmarks/reproduce/plain_loop.py --epochs 20
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaezoo

RESULT = Path(__file__).parents[1] / "results" / "plain_loop.json"
TOLERANCE = 1.0  # nats per image


def plain_loop(images: Tensor, epochs: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """A VAE as a tutorial would write it."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 40)
    )
    decoder = nn.Sequential(
        nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 784)
    )
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    for _ in range(epochs):
        for x in images[torch.randperm(len(images))].split(128):
            mean, log_variance = encoder(x).chunk(2, 1)
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            distortion = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") / len(x)
            rate = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / len(x)
            optimizer.zero_grad()
            (distortion + rate).backward()
            optimizer.step()
    return encoder, decoder


@torch.no_grad()
def negative_elbo(
    encoder: nn.Module, decoder: nn.Module, images: Tensor, draws: int = 5
) -> tuple[float, float]:
    """Mean over images of the negative ELBO, and its standard error, nats per image."""
    torch.manual_seed(0)
    values = []
    for x in images.split(1000):
        mean, log_variance = encoder(x).chunk(2, 1)
        rate = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
        distortion = torch.zeros(len(x))
        for _ in range(draws):
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            logits = decoder(z).flatten(1)
            distortion += F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1) / draws
        values.append(distortion + rate)
    each = torch.cat(values).double()
    return each.mean().item(), (each.std() / len(each) ** 0.5).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    data = vaezoo.load_data("fashion_mnist")
    train, test = (split.batch(torch.arange(len(split))).flatten(1) for split in (data.train, data.test))

    began = time.monotonic()
    torch.manual_seed(args.seed)
    model = vaezoo.create("vae")
    vaezoo.train(model, data, epochs=args.epochs, seed=args.seed, device="cpu")
    seconds = {"vaezoo": time.monotonic() - began}
    began = time.monotonic()
    plain = plain_loop(train, args.epochs, args.seed)
    seconds["plain_loop"] = time.monotonic() - began

    ours, plain_score = negative_elbo(model.encoder, model.decoder, test), negative_elbo(*plain, test)
    result = {
        "what": "test negative ELBO of vae on grey-level Fashion-MNIST, nats per image",
        "epochs": args.epochs,
        "seed": args.seed,
        "vaezoo": {"value": ours[0], "se": ours[1]},
        "plain_loop": {"value": plain_score[0], "se": plain_score[1]},
        "difference": ours[0] - plain_score[0],
        "tolerance": TOLERANCE,
        "matched": ours[0] - plain_score[0] < TOLERANCE,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "data": data.header(),
        "versions": {"vaezoo": vaezoo.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
