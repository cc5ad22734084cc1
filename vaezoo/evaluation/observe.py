"""One pass over the images, from which reconstruction, likelihood and latents are all measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent
from tqdm import tqdm

from vaezoo.autoencoder import Autoencoder, evaluation_mode
from vaezoo.data import Split
from vaezoo.distributions import DiscretizedLogisticMixture
from vaezoo.evaluation.latents import code_counts
from vaezoo.evaluation.reconstruction import mse, psnr, ssim

Measure = Literal["binary", "levels", "density"]


@dataclass(frozen=True)
class Observed:
    """What the pass collects, on the model's device.

    Attributes:
        per_image: by name, one number for each image, [N]: "mse", "psnr", "ssim", "distortion" and, where the
            model has a prior, "rate".
        means: mean of q(z|x), [N, D], where the latent is one vector.
        counts: for code grids, how often each code was chosen, [K] per level, coarsest first.
        deterministic: q(z|x) is a point mass.
        measure: what p(x|z) measures, see `measure`.
        binary: all pixels are 0 or 1.
        eight_bit: all pixels are one of 256 levels.
        shape: (C, H, W).
    """

    per_image: dict[str, Tensor]
    means: Tensor | None
    counts: tuple[Tensor, ...] | None
    deterministic: bool
    measure: Measure
    binary: bool
    eight_bit: bool
    shape: tuple[int, ...]


def batches(
    split: Split, batch_size: int, dtype: torch.dtype, progress: str | None = None
) -> Iterator[Tensor]:
    """All images of a split in order, [B, C, H, W]; the last batch may be smaller.

    `progress`: title of a bar."""
    rows = torch.arange(len(split), device=split.device).split(batch_size)
    for indices in tqdm(rows, desc=progress, disable=progress is None, leave=False):
        yield split.batch(indices).to(dtype)


def observe(
    model: Autoencoder,
    images: Iterator[Tensor],
    generator: torch.Generator | None = None,
) -> Observed:
    """Encode and decode every image once at a draw of q(z|x) and once at its mean."""
    latent = model.latent
    is_vector = latent.codes is None and [len(shape) for shape in latent.shapes] == [1]
    columns: dict[str, list[Tensor]] = {}
    means: list[Tensor] = []
    counts: tuple[Tensor, ...] | None = None
    binary: list[Tensor] = []
    eight_bit: list[Tensor] = []
    with evaluation_mode(model):
        for x in images:
            q = model.encode(x)
            z = q.draw(generator)
            p = model.decode(z)
            reconstruction = model.decode(q.mean).mean
            row = {
                "mse": mse(reconstruction, x),
                "psnr": psnr(reconstruction, x),
                "distortion": -p.log_prob(x),
            }
            if min(x.shape[-2:]) >= 3:
                row["ssim"] = ssim(reconstruction, x)
            if model.prior is not None:
                row["rate"] = model.rate(q, z)
            for name, values in row.items():
                columns.setdefault(name, []).append(values)
            if is_vector:
                means.append(q.mean)
            if latent.codes is not None:
                levels = z if isinstance(z, tuple) else (z,)
                chosen = tuple(code_counts(codes, latent.codes) for codes in levels)
                counts = chosen if counts is None else tuple(a + b for a, b in zip(counts, chosen))
            binary.append(((x == 0) | (x == 1)).all())
            eight_bit.append(((255 * x - torch.round(255 * x)).abs() < 1e-3).all())
    return Observed(
        per_image={name: torch.cat(values) for name, values in columns.items()},
        means=torch.cat(means) if means else None,
        counts=counts,
        deterministic=q.deterministic,
        measure=measure(p),
        binary=bool(torch.stack(binary).all()),
        eight_bit=bool(torch.stack(eight_bit).all()),
        shape=tuple(x.shape[1:]),
    )


def measure(p: Distribution) -> Measure:
    """What the `log_prob` of an image distribution is the logarithm of: the probability of 0/1 pixels
    ("binary"), that of one of 256 grey levels ("levels"), or a density."""
    pixels = p.base_dist if isinstance(p, Independent) else p
    if isinstance(pixels, DiscretizedLogisticMixture):
        return "levels"
    return "binary" if pixels.support.is_discrete else "density"  # type: ignore[union-attr]
