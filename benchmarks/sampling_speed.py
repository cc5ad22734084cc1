"""Time of sampling code grids with cached activations, against one full forward pass for every position.

    python benchmarks/sampling_speed.py --threads 1 --batch 8

Every prior at its default options, with random weights, on a 16 x 16 grid of 512 codes: the time depends on
neither the weights nor the codes. Both ways get the same random numbers, and the script stops if they do not
draw the same codes. The faster of two runs counts. The result replaces the one in the folder results, unless
--dry-run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from types import MethodType
from typing import Any

import torch

import vaezoo
from vaezoo.priors import PRIORS, LatentShape
from vaezoo.priors.codes import CodePrior
from vaezoo.random import generator, seeded

RESULTS = Path(__file__).parent / "results" / "sampling_speed.json"
CODES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--priors", nargs="+", default=["transformer", "pixelcnn", "pixelsnail"])
    parser.add_argument("--grid", type=int, default=16, help="height and width")
    parser.add_argument("--batch", type=int, default=16, help="images sampled at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry-run", action="store_true", help="print, and write nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    result: dict[str, Any] = {
        "priors": {name: measure(name, args) for name in args.priors},
        "grid": args.grid,
        "codes": CODES,
        "batch": args.batch,
        "device": args.device,
        "threads": args.threads,
        "processors": os.cpu_count(),
        "load_average_at_the_end": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, "vaezoo": vaezoo.__version__},
    }
    print(json.dumps(result, indent=2))
    if not args.dry_run:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways of sampling one batch, and their ratio."""
    prior_class = PRIORS.get(name)
    with seeded(0, "cpu"):
        prior = prior_class(prior_class.Config(), LatentShape(((args.grid, args.grid),), CODES))
    prior = prior.to(args.device).eval()

    def sample() -> tuple[float, torch.Tensor]:
        draws = generator(0, args.device)
        began = time.perf_counter()
        codes = prior.sample(args.batch, draws).cpu()
        return time.perf_counter() - began, codes

    sample()
    seconds, codes = min((sample() for _ in range(2)), key=lambda run: run[0])
    for method in ("begin", "begin_row", "step"):
        setattr(prior, method, MethodType(getattr(CodePrior, method), prior))
    naive_seconds, naive_codes = min((sample() for _ in range(2)), key=lambda run: run[0])
    differing = (codes != naive_codes).float().mean().item()
    assert differing == 0, f"{name}: {differing:.2%} of the codes differ"
    return {
        "cached_seconds": round(seconds, 3),
        "naive_seconds": round(naive_seconds, 3),
        "ratio": round(naive_seconds / seconds, 2),
        "images_per_second": round(args.batch / seconds, 2),
        "parameters": sum(p.numel() for p in prior.parameters()),
    }


if __name__ == "__main__":
    main()
