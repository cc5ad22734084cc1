"""`make demo`: all models of the zoo on the embedded sprites, trained, evaluated and pictured, in minutes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import vaezoo
from vaezoo.comparison import table

VQ = {
    "codes": 64,
    "code_dim": 16,
    "channels": 32,
    "likelihood": "bernoulli",
    "prior_width": 64,
    "prior_depth": 2,
    "prior_epochs": 3,
}

#: Sized for two CPU cores: the convolutional models see fewer images than the fully connected ones.
OPTIONS: dict[str, dict[str, Any]] = {
    "ae": {"epochs": 12},
    "vae": {"epochs": 12},
    "beta_vae": {"epochs": 12},
    "conv_vae": {"epochs": 8},
    "vq_vae": {"epochs": 3, **VQ},
    "vq_vae2": {"epochs": 3, "downsample": 4, **VQ},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--short", action="store_true", help="a tenth of the images: does it run?")
    args = parser.parse_args()
    began = time.monotonic()
    size = 2_000 if args.short else 12_000
    data = vaezoo.load_data("sprites", size=32, train_size=size, test_size=size // 4, validation=size // 10)
    reports = vaezoo.compare(
        list(OPTIONS),
        data,
        args.out,
        model_options=OPTIONS,
        evaluation={"n": size // 4, "likelihood_n": size // 40},
        progress=True,
    )
    print(table(reports))
    print(f"\n{time.monotonic() - began:.0f} s. Look at {args.out}/report.md and the pictures beside it.")


if __name__ == "__main__":
    main()
