"""VQ-VAE."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution

from vaezoo.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    Joint,
    Latent,
    LatentShape,
    Loss,
    Progress,
    Quantized,
)
from vaezoo.config import check_options
from vaezoo.distributed import total
from vaezoo.distributions import code_counts, perplexity
from vaezoo.errors import VaezooError
from vaezoo.inference import inference
from vaezoo.likelihoods import LIKELIHOODS
from vaezoo.networks.grid import grid_decoder, grid_encoder
from vaezoo.networks.quantizer import Codebook
from vaezoo.priors.codes import CodePrior


class VQVAE(Autoencoder):
    """Vector-quantised VAE: a grid of codes from a learned codebook instead of a Gaussian vector.

    -log p(x|z_q) + |sg[z_e] - e|^2 + commitment * |z_e - sg[e]|^2        (eq. 3 of the paper)

    with straight-through gradients from z_q to z_e. All three terms are summed over an image. The codebook
    term is a loss with `ema=False`; by default moving averages take its place (appendix A.1). The prior over
    codes is learned in a second stage: `vaezoo.fit_prior`.
    """

    paper = (
        "van den Oord, Vinyals & Kavukcuoglu, Neural Discrete Representation Learning, NeurIPS 2017, "
        "arXiv:1711.00937"
    )
    equation = (
        r"-\log p(x \mid z_q) + \left\| \mathrm{sg}[z_e] - e \right\|^2 "
        r"+ \beta \left\| z_e - \mathrm{sg}[e] \right\|^2"
    )
    default_prior = "transformer"

    class Config(AutoencoderConfig):
        codes: int = Field(512, ge=2, description="K, number of vectors in a codebook")
        code_dim: int = Field(64, ge=1, description="D, dimensions of a codebook vector")
        downsample: int = Field(4, ge=2, description="image size over grid size, a power of 2")
        commitment: float = Field(0.25, ge=0, description="weight of the commitment term")
        ema: bool = Field(True, description="learn the codebook by moving averages; False: by gradient")
        decay: float = Field(0.99, ge=0, lt=1, description="decay of the moving averages")
        revive: float = Field(
            0.01,
            ge=0,
            lt=1,
            description="a code used less than this fraction of even usage is revived; 0: never",
        )
        channels: int = Field(64, ge=2, description="channels of the convolutions (256 in the paper)")
        residual_channels: int = Field(32, ge=1, description="channels inside the residual blocks")
        residual_blocks: int = Field(2, ge=0, le=64, description="residual blocks on either side")
        likelihood: str = Field("gaussian", description="name of p(x|z): gaussian, bernoulli, ...")
        likelihood_scale: float = Field(
            0.25, gt=0, description="scale of a Gaussian or Laplace p(x|z), or where a learned one starts"
        )

    config: Config
    codebooks: nn.ModuleList

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.likelihood = LIKELIHOODS.get(config.likelihood)(config.likelihood_scale)
        self.grids = tuple(self.grid(factor) for factor in self.pixels_per_code())
        self.codebooks = nn.ModuleList(
            Codebook(config.codes, config.code_dim, config.ema, config.decay, config.revive)
            for _ in self.grids
        )
        self.build()

    def pixels_per_code(self) -> tuple[int, ...]:
        """Height and width in pixels that one code stands for, at each level, coarsest first."""
        return (self.config.downsample,)

    def grid(self, factor: int) -> tuple[int, int]:
        """Height and width of the grid at `factor` pixels per code; refuses images it does not divide."""
        _, height, width = self.config.image_shape
        if factor & (factor - 1):
            raise VaezooError(f"downsample={self.config.downsample} is not valid: it must be a power of 2")
        if height % factor or width % factor:
            raise VaezooError(
                f"{type(self).__name__} divides the image by {factor}, so height and width must be "
                f"multiples of {factor}, not {height}x{width}; choose another downsample or image size"
            )
        return height // factor, width // factor

    def build(self) -> None:
        """Make the networks."""
        c = self.config
        outputs = c.image_shape[0] * self.likelihood.parameters_per_channel
        self.encoder = nn.Sequential(
            grid_encoder(c.image_shape[0], c.channels, c.residual_channels, c.residual_blocks, c.downsample),
            nn.Conv2d(c.channels, c.code_dim, 1),
        )
        self.decoder = grid_decoder(
            c.code_dim, c.channels, outputs, c.residual_channels, c.residual_blocks, c.downsample
        )

    @property
    def latent(self) -> LatentShape:
        return LatentShape(self.grids, self.config.codes)

    def codebook(self, level: int) -> Codebook:
        return cast(Codebook, self.codebooks[level])

    def encode(self, x: Tensor) -> Quantized | Joint:
        return self.codebook(0)(self.encoder(x))

    def decode(self, z: Latent) -> Distribution:
        """p(x|z). z: code vectors [B, D, h, w], or integer codes [B, h, w]."""
        return self.likelihood(self.decoder(self.vectors(z, 0)))

    def vectors(self, z: Latent, level: int) -> Tensor:
        """The code vectors of one level of a latent that holds vectors or codes."""
        z = z[level] if isinstance(z, tuple) else z
        return z if z.is_floating_point() else self.codebook(level).lookup(z)

    def losses(self, x: Tensor, progress: Progress) -> dict[str, Loss]:
        q = self.encode(x)
        distortion = self.distortion(x, q.rsample()).mean()
        commitment = torch.stack([_squares(f.encoded, f.vectors.detach()) for f in q.factors]).sum()
        loss = distortion + self.config.commitment * commitment
        terms = {"distortion": distortion, "commitment": commitment}
        if not self.config.ema:
            codebook = torch.stack([_squares(f.encoded.detach(), f.vectors) for f in q.factors]).sum()
            loss = loss + codebook
            terms["codebook"] = codebook
        for level, factor in enumerate(q.factors):
            suffix = f"_{level}" if len(q.factors) > 1 else ""
            counts = total(code_counts(factor.codes, self.config.codes))
            terms[f"perplexity{suffix}"] = perplexity(counts)
            terms[f"usage{suffix}"] = (counts > 0).float().mean()
            if self.training:
                self.codebook(level).update(factor)
        return {"model": Loss(loss, terms)}

    @inference
    def inpaint(
        self, x: Tensor, hole: Tensor, generator: torch.Generator | None = None, **options: Any
    ) -> Tensor:
        """Images x [B, C, H, W] with the pixels of a hole drawn anew by the prior, the others as they are.

        The hole is filled with the mean of the other pixels before the image is encoded; codes are drawn
        anew where they, or their neighbours, stand for pixels of the hole.

        Args:
            x: images in [0, 1].
            hole: bool [H, W], True where pixels are drawn.
            generator: as in `sample`.
            **options: of `CodePrior.complete`, such as `candidates` and `temperature`.

        Raises:
            VaezooError: a prior that is not over codes, a hole of another shape, or an unknown option.
        """
        prior = self.require_prior()
        if not isinstance(prior, CodePrior):
            raise VaezooError(f"{type(prior).__name__} cannot complete codes: inpainting needs a CodePrior")
        if hole.shape != x.shape[2:] or hole.dtype != torch.bool:
            raise VaezooError(
                f"inpaint: hole must be bool {list(x.shape[2:])}, not {hole.dtype} {list(hole.shape)}"
            )
        check_options(prior.complete, options, "option of inpainting")
        hole = hole.to(x.device)
        seen = (~hole).to(x)
        mean = (x * seen).sum((2, 3), keepdim=True) / seen.sum().clamp_min(1)
        codes = self.latents(torch.where(hole, mean, x))
        known = []
        for factor in self.pixels_per_code():
            missing = F.max_pool2d(hole.to(x)[None, None], factor)
            known.append(F.max_pool2d(missing, 3, 1, 1)[0] == 0)
        masks = tuple(known) if isinstance(codes, tuple) else known[0]
        drawn = prior.complete(codes, masks, generator, **options)
        return torch.where(hole, self.decode(drawn).mean, x)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """K-means start of the codebooks on the encoder's first outputs, coarsest level first."""
        for level in range(len(self.codebooks)):
            self.codebook(level).initialize(self.encode(x).factors[level].encoded)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of two grids of vectors [B, D, h, w], summed over an image, mean over the batch."""
    return (a - b).square().flatten(1).sum(1).mean()
