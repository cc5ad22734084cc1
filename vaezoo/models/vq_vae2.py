"""VQ-VAE-2."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution

from vaezoo.distributions import Joint, Latent, Quantized
from vaezoo.models.vq_vae import VQVAE
from vaezoo.networks.grid import grid_decoder, grid_encoder


class VQVAE2(VQVAE):
    """VQ-VAE with a hierarchy of code grids: a coarse one for the whole, finer ones for the detail.

    Each finer level is encoded from the image's features at its resolution together with the decoded coarser
    level, so it only carries what that one left out; the decoder reads all levels (Razavi et al. 2019,
    algorithm 1 and figure 2a). The loss is that of the VQ-VAE, summed over the levels.
    """

    paper = (
        "Razavi, van den Oord & Vinyals, Generating Diverse High-Fidelity Images with VQ-VAE-2, "
        "NeurIPS 2019, arXiv:1906.00446"
    )

    equation = (
        r"-\log p(x \mid z_q^1, \ldots, z_q^L) + \sum_{l=1}^{L} \left\| \mathrm{sg}[z_e^l] - e^l \right\|^2 "
        r"+ \beta \left\| z_e^l - \mathrm{sg}[e^l] \right\|^2"
    )

    class Config(VQVAE.Config):
        levels: int = Field(
            2, ge=2, le=8, description="number of code grids, each half as wide as the next finer"
        )
        downsample: int = Field(
            2,
            ge=2,
            description="image size over the finest grid's size, a power of 2 (4 at the paper's 256 pixels)",
        )

    config: Config

    def pixels_per_code(self) -> tuple[int, ...]:
        return tuple(self.config.downsample * 2**i for i in reversed(range(self.config.levels)))

    def build(self) -> None:
        c = self.config
        trunk = (c.residual_channels, c.residual_blocks)
        outputs = c.image_shape[0] * self.likelihood.parameters_per_channel
        inputs = [c.image_shape[0], *[c.channels] * (c.levels - 1)]
        factors = [c.downsample, *[2] * (c.levels - 1)]
        # Modules are listed coarsest first, like the latents.
        self.encoders = nn.ModuleList(
            grid_encoder(i, c.channels, *trunk, f) for i, f in zip(reversed(inputs), reversed(factors))
        )
        self.to_codes = nn.ModuleList(
            nn.Conv2d(c.channels + (c.channels if level else 0), c.code_dim, 1) for level in range(c.levels)
        )
        # From the levels so far to the resolution of the next finer one.
        self.decoders = nn.ModuleList(
            grid_decoder(c.code_dim * (level + 1), c.channels, c.channels, *trunk, 2)
            for level in range(c.levels - 1)
        )
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(c.code_dim * (level + 1), c.code_dim * (level + 1), 4, 2, 1)
            for level in range(c.levels - 1)
        )
        self.decoder = grid_decoder(c.code_dim * c.levels, c.channels, outputs, *trunk, c.downsample)

    def encode(self, x: Tensor) -> Joint:
        features, h = [], x
        for encoder in reversed(self.encoders):
            h = encoder(h)
            features.append(h)
        factors: list[Quantized] = []
        context = None
        for level, (feature, to_codes) in enumerate(zip(reversed(features), self.to_codes)):
            if level:
                context = self.stack(factors[-1].rsample(), level - 1, context)
                feature = torch.cat([feature, self.decoders[level - 1](context)], 1)
            factors.append(self.codebook(level)(to_codes(feature)))
        return Joint(tuple(factors))

    def decode(self, z: Latent) -> Distribution:
        """p(x|z). z: for each level, coarsest first, code vectors [B, D, h, w] or codes [B, h, w]."""
        context = None
        for level in range(self.config.levels):
            context = self.stack(self.vectors(z, level), level, context)
        return self.likelihood(self.decoder(context))

    def stack(self, vectors: Tensor, level: int, coarser: Tensor | None) -> Tensor:
        """This level's vectors below all coarser ones, brought to its resolution."""
        return vectors if coarser is None else torch.cat([vectors, self.upsample[level - 1](coarser)], 1)
