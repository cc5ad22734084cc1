"""One pass over the images, from which reconstruction, likelihood and latents are all measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

from vaezoo.autoencoder import Autoencoder, LatentShape
from vaezoo.distributions import DiagonalGaussian
from vaezoo.evaluation.reconstruction import mse, psnr, ssim
from vaezoo.inference import evaluation_mode

Measure = Literal["binary", "levels", "density"]


@dataclass(frozen=True)
class Observed:
    """What the pass collects, on the model's device.

    Attributes:
        per_image: by name, one number for each image, [N]: "mse", "psnr", "ssim", "distortion" and, if it was
            asked for and the model has a prior, "rate".
        means: mean of q(z|x), [N, D], where the latent is one vector.
        draws: the z ~ q(z|x) that the distortion was measured at, [N, D], where the latent is one vector.
        log_variances: of q(z|x), [N, D], where it is a diagonal Gaussian.
        codes: for code grids, the codes of every image, [N, positions] per level, coarsest first.
        codebook: how many codes there are to choose from, where they are codes.
        deterministic: q(z|x) is a point mass.
        measure: what p(x|z) measures, see `measure`.
        binary: all pixels are 0 or 1.
        eight_bit: all pixels are one of 256 levels.
        shape: (C, H, W).
    """

    per_image: dict[str, Tensor]
    means: Tensor | None
    draws: Tensor | None
    log_variances: Tensor | None
    codes: tuple[Tensor, ...] | None
    codebook: int | None
    deterministic: bool
    measure: Measure
    binary: bool
    eight_bit: bool
    shape: tuple[int, ...]


def is_vector(latent: LatentShape) -> bool:
    """The latent is one vector of real numbers."""
    return latent.codes is None and [len(shape) for shape in latent.shapes] == [1]


def observe(
    model: Autoencoder,
    images: Iterator[Tensor],
    generator: torch.Generator | None = None,
    rate: bool = True,
) -> Observed:
    """Encode and decode every image once at a draw of q(z|x) and once at its mean.

    Args:
        model: any model of the contract.
        images: batches [B, C, H, W]; at least one.
        generator: draws z.
        rate: measure the rate too, which takes a pass through the prior.
    """
    latent = model.latent
    columns: dict[str, list[Tensor]] = {}
    vectors: dict[str, list[Tensor]] = {"means": [], "draws": [], "log_variances": []}
    codes: list[tuple[Tensor, ...]] = []
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
            if rate and model.prior is not None:
                row["rate"] = model.rate(q, z)
            for name, values in row.items():
                columns.setdefault(name, []).append(values)
            if is_vector(latent):
                vectors["means"].append(q.mean)
                vectors["draws"].append(z)
            if isinstance(q, DiagonalGaussian):
                vectors["log_variances"].append(q.log_variance)
            if latent.codes is not None:
                levels = z if isinstance(z, tuple) else (z,)
                codes.append(tuple(level.flatten(1).to(_code_type(latent.codes)) for level in levels))
            binary.append(((x == 0) | (x == 1)).all())
            eight_bit.append(((255 * x - torch.round(255 * x)).abs() < 1e-3).all())
    return Observed(
        per_image={name: torch.cat(values) for name, values in columns.items()},
        **{name: torch.cat(parts) if parts else None for name, parts in vectors.items()},
        codes=tuple(torch.cat(level) for level in zip(*codes)) if codes else None,
        codebook=latent.codes,
        deterministic=q.deterministic,
        measure=measure(p),
        binary=bool(torch.stack(binary).all()),
        eight_bit=bool(torch.stack(eight_bit).all()),
        shape=tuple(x.shape[1:]),
    )


def _code_type(codes: int) -> torch.dtype:
    """The smallest integers that codes 0 to `codes` - 1 fit into."""
    return next(t for t in (torch.uint8, torch.int16, torch.int32) if codes - 1 <= torch.iinfo(t).max)


def measure(p: Distribution) -> Measure:
    """What the `log_prob` of an image distribution is the logarithm of: the probability of 0/1 pixels
    ("binary"), that of one of 256 grey levels ("levels"), or a density."""
    pixels = p.base_dist if isinstance(p, Independent) else p
    if pixels.support is constraints.boolean:
        return "binary"
    return "levels" if pixels.support.is_discrete else "density"  # type: ignore[union-attr]
