"""One pass over the images, from which reconstruction, likelihood and latents are all measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

from vaezoo.autoencoder import Autoencoder
from vaezoo.distributions import DiagonalGaussian, code_type
from vaezoo.evaluation.features import Features
from vaezoo.evaluation.lpips import Lpips
from vaezoo.evaluation.reconstruction import MS_SSIM_SMALLEST, l1, ms_ssim, mse, psnr, ssim
from vaezoo.evaluation.report import Skipped
from vaezoo.evaluation.sampling import extract
from vaezoo.inference import evaluation_mode

Measure = Literal["binary", "levels", "density"]


@dataclass(frozen=True)
class Observed:
    """What the pass collects, on the model's device.

    Attributes:
        per_image: by name, one number for each image, [N]: "mse", "l1", "psnr", "distortion"; "ssim" and
            "ms_ssim" if the images are large enough; if they were asked for "lpips" and, if the model has a
            prior, "rate".
        features_real, features_reconstructed: of the images and of their reconstructions, [N, d], if features
            were given.
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
    features_real: Tensor | None
    features_reconstructed: Tensor | None
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


def observe(
    model: Autoencoder,
    images: Iterator[Tensor],
    generator: torch.Generator | None = None,
    rate: bool = True,
    features: Features | None = None,
    lpips: Lpips | Skipped | None = None,
) -> Observed:
    """Encode and decode every image once at a draw of q(z|x) and once at its mean.

    Args:
        model: any model of the contract.
        images: batches [B, C, H, W]; at least one.
        generator: draws z.
        rate: measure the rate too, which takes a pass through the prior.
        features: extract these of images and reconstructions.
        lpips: from `make_lpips`; measured too, if it is not skipped.
    """
    latent = model.latent
    columns: dict[str, list[Tensor]] = {}
    vectors: dict[str, list[Tensor]] = {
        name: [] for name in ("features_real", "features_reconstructed", "means", "draws", "log_variances")
    }
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
                "l1": l1(reconstruction, x),
                "psnr": psnr(reconstruction, x),
                "distortion": -p.log_prob(x),
            }
            if min(x.shape[-2:]) >= 3:
                row["ssim"] = ssim(reconstruction, x)
            if min(x.shape[-2:]) >= MS_SSIM_SMALLEST:
                row["ms_ssim"] = ms_ssim(reconstruction, x)
            if callable(lpips):
                row["lpips"] = lpips(reconstruction.clamp(0, 1), x)
            if features is not None:
                vectors["features_real"].append(extract(features, [x]))
                vectors["features_reconstructed"].append(extract(features, [reconstruction]))
            if rate and model.prior is not None:
                row["rate"] = model.rate(q, z)
            for name, values in row.items():
                columns.setdefault(name, []).append(values)
            if latent.is_vector:
                vectors["means"].append(q.mean)
                vectors["draws"].append(z)
            if isinstance(q, DiagonalGaussian):
                vectors["log_variances"].append(q.log_variance)
            if latent.codes is not None:
                levels = z if isinstance(z, tuple) else (z,)
                codes.append(tuple(level.flatten(1).to(code_type(latent.codes)) for level in levels))
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


def measure(p: Distribution) -> Measure:
    """What the `log_prob` of an image distribution is the logarithm of: the probability of 0/1 pixels
    ("binary"), that of one of 256 grey levels ("levels"), or a density."""
    pixels = p.base_dist if isinstance(p, Independent) else p
    if pixels.support is constraints.boolean:
        return "binary"
    return "levels" if pixels.support.is_discrete else "density"  # type: ignore[union-attr]
