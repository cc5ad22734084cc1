"""PixelSNAIL over code grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vaezoo.errors import VaezooError
from vaezoo.priors.base import LatentShape
from vaezoo.priors.causal import CausalConv, Place, attend_from
from vaezoo.priors.grid import CausalNetwork, GridPrior

REACH = 1  # of the convolutions in the blocks, which are 3 x 3


class PixelSNAILPrior(GridPrior):
    """PixelSNAIL: blocks of causal convolutions, each followed by attention over all earlier positions.

    The convolutions see what is near, the attention everything, so there is no blind spot. Sampling caches
    the inputs of every convolution, and keys and values.
    """

    paper = (
        "Chen, Mishra, Rohaninejad & Abbeel, PixelSNAIL: An Improved Autoregressive Generative Model, "
        "ICML 2018, arXiv:1712.09763"
    )

    class Config(GridPrior.Config):
        blocks: int = Field(2, ge=1, le=64, description="blocks of convolutions and attention")
        layers: int = Field(2, ge=1, le=64, description="residual layers of each block (4 in the paper)")
        heads: int = Field(4, ge=1, description="attention heads; must divide width")

    config: Config

    def __init__(self, config: Config, latent: LatentShape) -> None:
        if config.width % config.heads:
            raise VaezooError(f"pixelsnail: heads={config.heads} does not divide width={config.width}")
        super().__init__(config, latent)

    def network(self) -> CausalNetwork:
        return PixelSNAIL(self.codes, self.config)


@dataclass
class Cache:
    """Of one network.

    Attributes:
        context: [B, C, h, w].
        first: inputs of the first convolution.
        layers: inputs of the convolutions of each layer of each block.
        attention: keys and values of each block, [2, B, heads, T, C / heads].
        features: what each block has before its attention, [B, 1 + T, C], zeros first: at index t that of the
            position before t.
    """

    context: Tensor
    first: Tensor
    layers: list[list[tuple[Tensor, Tensor]]]
    attention: list[Tensor]
    features: list[Tensor]


class PixelSNAIL(CausalNetwork):
    """The network of one level."""

    def __init__(self, codes: int, config: PixelSNAILPrior.Config) -> None:
        super().__init__()
        width = config.width
        self.first = CausalConv(width, width, REACH, strict=True)
        self.blocks = nn.ModuleList(
            SNAILBlock(width, config.layers, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.head = nn.Sequential(nn.ELU(), nn.Linear(width, codes))

    def forward(self, embedded: Tensor, context: Tensor) -> Tensor:
        h = self.first(embedded)
        for block in self.blocks:
            h = block(h, embedded, context)
        return self.head(h.flatten(2).mT)

    def begin(self, context: Tensor) -> Cache:
        blocks = [cast(SNAILBlock, block) for block in self.blocks]
        return Cache(
            context,
            self.first.cache(context),
            [[cast(GatedResidual, layer).caches(context) for layer in block.layers] for block in blocks],
            [block.empty_cache(context) for block in blocks],
            [F.pad(torch.zeros_like(context).flatten(2).mT, (0, 0, 1, 0)) for _ in blocks],
        )

    def step(self, cache: Cache, previous: Tensor, position: Tensor) -> Tensor:
        width = cache.context.shape[3]
        here, last = Place(position, width, REACH), Place(position - 1, width, REACH)
        flat = cache.context.flatten(2)
        context = flat.index_select(2, position).squeeze(2)
        context_before = flat.index_select(2, (position - 1).clamp_min(0)).squeeze(2) * (position > 0)
        h = self.first.step(previous, cache.first, last, here)
        for module, layers, attention, features in zip(
            self.blocks, cache.layers, cache.attention, cache.features
        ):
            block = cast(SNAILBlock, module)
            for layer, caches in zip(block.layers, layers):
                h = cast(GatedResidual, layer).step(h, context, caches, here)
            q = block.query(torch.cat([h, context], 1))
            before = features.index_select(1, position).squeeze(1)
            k, v = block.keys_values(torch.cat([before, previous, context_before], 1)).chunk(2, 1)
            features.index_copy_(1, position + 1, h.unsqueeze(1).to(features.dtype))
            q, k, v = (block.split(t.unsqueeze(1)) for t in (q, k, v))
            attended = attend_from(position, q, k, v, attention)
            h = block.merge(h, attended.flatten(1))
        return self.head(h)


class SNAILBlock(nn.Module):
    """Residual layers, then attention to the codes and features of all earlier positions."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.layers = nn.ModuleList(GatedResidual(width, dropout) for _ in range(layers))
        self.query = nn.Linear(2 * width, width)
        self.keys_values = nn.Linear(3 * width, 2 * width)
        self.out = nn.Linear(2 * width, 2 * width)

    def forward(self, h: Tensor, embedded: Tensor, context: Tensor) -> Tensor:
        """h, embedded, context [B, C, h, w]."""
        for layer in self.layers:
            h = layer(h, context)
        sequence = [t.flatten(2).mT for t in (h, embedded, context)]  # [B, T, C]
        q = self.query(torch.cat([sequence[0], sequence[2]], 2))
        # Right by one, so that a position attends to the codes before it, and the first one to nothing.
        earlier = F.pad(torch.cat(sequence, 2), (0, 0, 1, 0))[:, :-1]
        k, v = self.keys_values(earlier).chunk(2, 2)
        q, k, v = (self.split(t) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged = self.merge(sequence[0], attended.transpose(1, 2).flatten(2))
        return merged.mT.reshape(h.shape)

    def split(self, t: Tensor) -> Tensor:
        """[B, T, C] -> [B, heads, T, C / heads]."""
        return t.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def merge(self, h: Tensor, attended: Tensor) -> Tensor:
        """h and, gated, what it and the attended features make, [..., C]."""
        return h + F.glu(self.out(F.elu(torch.cat([h, attended], -1))))

    def empty_cache(self, context: Tensor) -> Tensor:
        batch, channels, height, width = context.shape
        return context.new_zeros(2, batch, self.heads, height * width, channels // self.heads)


class GatedResidual(nn.Module):
    """h + a * sigmoid(b), [a, b] two causal convolutions of h; the context enters between them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = CausalConv(width, width, REACH)
        self.context = nn.Linear(width, width)
        self.second = CausalConv(width, 2 * width, REACH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        """h, context [B, C, h, w]."""
        between = self.first(F.elu(h)) + self.context(context.movedim(1, -1)).movedim(-1, 1)
        return h + F.glu(self.second(self.dropout(F.elu(between))), 1)

    def caches(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.first.cache(context), self.second.cache(context)

    def step(self, h: Tensor, context: Tensor, caches: tuple[Tensor, Tensor], here: Place) -> Tensor:
        """The same at one place, h and context [B, C]."""
        between = self.first.step(F.elu(h), caches[0], here, here) + self.context(context)
        return h + F.glu(self.second.step(F.elu(between), caches[1], here, here), 1)
