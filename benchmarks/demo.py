"""`make demo`: all models of the zoo on the embedded sprites, trained, evaluated and pictured, in minutes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import vaezoo
from vaezoo.comparison import table

#: Sized for two CPU cores: the convolutional models see fewer images than the fully connected ones.
EPOCHS = {"ae": 16, "vae": 16, "beta_vae": 16, "conv_vae": 6, "vq_vae": 3, "vq_vae2": 2}
OPTIONS = {
    "vq_vae": {"codes": 64, "channels": 32, "code_dim": 16, "likelihood": "bernoulli", "prior_epochs": 6},
    "vq_vae2": {
        "codes": 64,
        "channels": 32,
        "code_dim": 16,
        "downsample": 4,
        "likelihood": "bernoulli",
        "prior_epochs": 6,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--short", action="store_true", help="a tenth of the images: does it run?")
    args = parser.parse_args()
    began = time.monotonic()
    size = 2_000 if args.short else 20_000
    data = vaezoo.load_data("sprites", size=32, train_size=size, test_size=size // 4, validation=size // 10)
    options = {name: {"epochs": epochs, **OPTIONS.get(name, {})} for name, epochs in EPOCHS.items()}
    reports = vaezoo.compare(
        list(EPOCHS),
        data,
        args.out,
        model_options=options,
        evaluation={"n": size // 4, "likelihood_n": size // 40},
        progress=True,
    )
    print(table(reports))
    print(f"\n{time.monotonic() - began:.0f} s. Look at {args.out}/report.md and the pictures beside it.")


if __name__ == "__main__":
    main()
