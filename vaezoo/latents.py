"""The latents of a data set, to which a prior is fitted: encoded, with labels where the prior asks for them,
and kept in the run folder where they are codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaezoo.autoencoder import Autoencoder, Latent, map_latent
from vaezoo.checkpoint import (
    SCHEMA,
    fingerprint,
    read_header,
    read_tensors,
    weights_file,
    weights_fingerprint,
    write_tensors,
)
from vaezoo.data import ImageData, Loader, Split
from vaezoo.distributed import rank
from vaezoo.distributions import code_type
from vaezoo.errors import CheckpointError, VaezooError
from vaezoo.inference import evaluation_mode
from vaezoo.priors import Labelled, Prior
from vaezoo.random import derive, seeded

CODES = "codes.safetensors"

#: Splits that a prior is fitted and validated on.
SPLITS = ("train", "validation")


class Latents:
    """Latents on the device in the form that a `Loader` takes: batches of z, or `Labelled` ones.

    Args:
        z: latents of N images.
        labels: their classes, long [N]; None: batches without labels.
    """

    resident = True

    def __init__(self, z: Latent, labels: Tensor | None = None) -> None:
        first = z[0] if isinstance(z, tuple) else z
        self.z, self.device, self.size = z, first.device, len(first)
        self.labels = labels if labels is None else labels.to(first.device)

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: Tensor) -> Any:
        z = map_latent(lambda level: level[indices], self.z)
        return z if self.labels is None else Labelled(z, self.labels[indices])

    def fingerprint(self) -> dict[str, str]:
        """What identifies the latents and, where there are any, the labels."""
        labels = {} if self.labels is None else {"labels": fingerprint({"labels": self.labels})}
        return {"latents": fingerprint(_named(self.z)), **labels}


def encode_data(
    model: Autoencoder, data: ImageData, seed: int, workers: int = 0, folder: str | Path | None = None
) -> dict[str, Latent]:
    """The latents of the training and the validation split, by the split's name.

    With `folder`, codes are kept there as codes.safetensors, and taken from there where they were encoded by
    the same weights from the same data with the same seed: then they are those that encoding again would
    give, also where the images are binarised dynamically, which is one draw of each image.
    """
    if folder is None or model.latent.codes is None:
        return {split: encode_all(model, data.splits[split], seed, workers) for split in SPLITS}
    path = weights_file(folder).with_name(CODES)
    known = data.header()
    identity = {
        "weights": weights_fingerprint(model.state_dict()),
        "data": {key: known[key] for key in ("fingerprint", "sizes", "seed", "binarize")},
        "seed": seed,
    }
    kept = _read_codes(path, identity, next(model.parameters()).device)
    if kept is not None:
        return kept
    latents = encode_data(model, data, seed, workers)
    if rank() == 0:
        tensors = {f"{split}.{name}": t for split, z in latents.items() for name, t in _named(z).items()}
        write_tensors(path, tensors, {"schema": SCHEMA, "identity": identity})
    return latents


def _read_codes(path: Path, identity: dict[str, Any], device: torch.device) -> dict[str, Latent] | None:
    """What `encode_data` has kept; None where that is something else, or damaged: it can be made again."""
    try:
        header = read_header(path)
        if header.get("identity") != identity:
            return None
        tensors = read_tensors(path)
    except CheckpointError:
        return None
    latents: dict[str, Latent] = {}
    for split in SPLITS:
        levels = [tensors[name].to(device) for name in sorted(tensors) if name.startswith(f"{split}.")]
        latents[split] = levels[0] if len(levels) == 1 else tuple(levels)
    return latents


def _named(z: Latent) -> dict[str, Tensor]:
    """The levels of latents under names in their order."""
    return {f"{i:02}": level for i, level in enumerate(z if isinstance(z, tuple) else (z,))}


def encode_all(model: Autoencoder, split: Split, seed: int = 0, workers: int = 0) -> Latent:
    """The latents of a whole split (`Autoencoder.latents`), codes in the smallest integer type: [N, ...]."""
    loader = Loader(split, min(512, len(split)), shuffle=False, drop_last=False, workers=workers)
    device = next(model.parameters()).device
    codes = model.latent.codes

    def compact(level: Tensor) -> Tensor:
        return level if codes is None else level.to(code_type(codes))

    with evaluation_mode(model), seeded(derive(seed, "latents"), device):
        batches = [map_latent(compact, model.latents(batch)) for batch in loader.epoch(0)]
    return map_latent(lambda *parts: torch.cat(parts), *batches)


def labels_for(prior: Prior, name: str, data: ImageData) -> dict[str, Tensor | None]:
    """The labels of each split for a prior that takes classes, checked; None for one that does not."""
    if not prior.conditional:
        return dict.fromkeys(SPLITS)
    classes = prior.config.classes
    labels: dict[str, Tensor | None] = {}
    for split in SPLITS:
        found = data.splits[split].labels
        if found is None:
            raise VaezooError(
                f"prior '{name}' with classes={classes} needs labels, but {data.name} has none; fit it "
                "without classes"
            )
        least, most = int(found.min()), int(found.max())
        if least < 0 or most >= classes:
            raise VaezooError(
                f"prior '{name}' has classes={classes}, so labels are 0 to {classes - 1}, but those of "
                f"{data.name} go from {least} to {most}"
            )
        labels[split] = found
    return labels
