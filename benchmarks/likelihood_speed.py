"""Time of the importance-weighted bound on test images of Fashion-MNIST, binarised once, in the zoo's `vae`.

    python benchmarks/likelihood_speed.py --threads 2                  k = 5000 on all 10,000 images
    python benchmarks/likelihood_speed.py --images 100 --samples 500   a thousandth of the draws

The model is trained for one epoch first, so that its logits are those of a model and not of a start; that is
not part of the time. The result replaces the one in the folder results, unless --dry-run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from tqdm import tqdm

import vaezoo
from vaezoo.evaluation.report import Metric, average
from vaezoo.random import derive, generator, seeded

RESULTS = Path(__file__).parent / "results" / "likelihood_speed.json"
BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=5000, help="k")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print, and write nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    data = vaezoo.load_data("fashion_mnist", binarize="static")
    with seeded(derive(args.seed, "create"), "cpu"):
        model = vaezoo.create("vae", image_shape=data.image_shape)
    vaezoo.train(model, data, epochs=1, seed=args.seed, device="cpu")
    images = data.test.first(args.images)
    model.log_prob(images.batch(torch.arange(1)), 100)  # the first call pays for threads and memory

    draws = generator(derive(args.seed, "importance"), "cpu")
    bounds = []
    wall, cpu = time.perf_counter(), time.process_time()
    for rows in tqdm(torch.arange(len(images)).split(BATCH)):
        bounds.append(model.log_prob(images.batch(rows), args.samples, draws))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    bound = average(torch.cat(bounds), "nats per image", "higher")
    assert isinstance(bound, Metric), bound

    result = {
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "draws_per_cpu_second": round(len(images) * args.samples / cpu),
        "threads": args.threads,
        "k": args.samples,
        "n": len(images),
        "value": bound.value,
        "se": bound.se,
        "data": data.header(),
        "seed": args.seed,
        "processors": os.cpu_count(),
        "load_average_at_the_end": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, "vaezoo": vaezoo.__version__},
    }
    print(json.dumps(result, indent=2))
    if not args.dry_run:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
