"""Code priors made of one causal network for each level, given all coarser levels."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vaezoo.networks.grid import Residual
from vaezoo.priors.base import LatentShape
from vaezoo.priors.codes import CodePrior, Codes


class CausalNetwork(nn.Module):
    """Logits of each position of one grid given the embedded codes at earlier ones."""

    def forward(self, embedded: Tensor, context: Tensor) -> Tensor:
        """Logits [B, h * w, K].

        Args:
            embedded: of the codes of this grid, [B, C, h, w].
            context: of everything that is known beforehand, [B, C, h, w].
        """
        raise NotImplementedError

    def begin(self, context: Tensor) -> Any:
        """Empty caches."""
        raise NotImplementedError

    def begin_row(self, cache: Any, above: Tensor, row: Tensor) -> None:
        """Compute what the row `row` [1] needs from the embedded codes of the row above it, [B, C, 1, w]."""

    def step(self, cache: Any, previous: Tensor, position: Tensor) -> Tensor:
        """Logits [B, K] at `position` [1], given the embedded code of the position before it, [B, C]."""
        raise NotImplementedError


class GridPrior(CodePrior):
    """A `CausalNetwork` for each level. What is known before a level is drawn, its position in the grid, the
    class and all coarser codes, enters every layer."""

    class Config(CodePrior.Config):
        width: int = Field(64, ge=1, description="channels")
        dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the layers, while training")

    config: Config

    def __init__(self, config: Config, latent: LatentShape) -> None:
        super().__init__(config, latent)
        width, levels = config.width, range(len(latent.shapes))
        self.embeddings = nn.ModuleList(nn.Embedding(self.codes, width) for _ in levels)
        self.label = nn.Embedding(config.classes + 1, width)
        self.positions = nn.ParameterList(torch.zeros(width, *shape) for shape in latent.shapes)
        self.coarser = nn.ModuleList(Coarser(self.codes, width, level) for level in levels[1:])
        self.networks = nn.ModuleList(self.network() for _ in levels)
        nn.init.normal_(self.label.weight, std=0.02)

    def network(self) -> CausalNetwork:
        """The network of one level."""
        raise NotImplementedError

    def logits(self, codes: Codes, labels: Tensor) -> list[Tensor]:
        logits = []
        for level, network in enumerate(self.networks):
            embedded = self.embeddings[level](codes[level].long()).movedim(-1, 1)
            logits.append(network(embedded, self.context(level, codes, labels)))
        return logits

    def context(self, level: int, codes: Codes, labels: Tensor) -> Tensor:
        """[B, C, h, w]."""
        context = self.positions[level] + self.label(labels)[:, :, None, None]
        return context + self.coarser[level - 1](codes[:level], context.shape[2:]) if level else context

    def begin(self, level: int, codes: Codes, labels: Tensor) -> Any:
        return cast(CausalNetwork, self.networks[level]).begin(self.context(level, codes, labels))

    def begin_row(self, level: int, cache: Any, codes: Codes, row: Tensor) -> None:
        above = codes[level].index_select(1, (row - 1).clamp_min(0))
        embedded = self.embeddings[level](above).movedim(-1, 1) * (row > 0)
        cast(CausalNetwork, self.networks[level]).begin_row(cache, embedded, row)

    def step(self, level: int, cache: Any, codes: Codes, position: Tensor) -> Tensor:
        before = codes[level].flatten(1).index_select(1, (position - 1).clamp_min(0))
        embedded = self.embeddings[level](before).squeeze(1) * (position > 0)
        return cast(CausalNetwork, self.networks[level]).step(cache, embedded, position)


class Coarser(nn.Module):
    """Features of all coarser levels at the resolution of a finer one.

    Args:
        codes: K.
        width: channels.
        levels: number of coarser levels.
    """

    def __init__(self, codes: int, width: int, levels: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(codes, width) for _ in range(levels))
        self.blocks = nn.Sequential(*(Residual(width, width) for _ in range(2)))

    def forward(self, codes: Codes, size: torch.Size) -> Tensor:
        """codes of the coarser levels -> [B, C, *size]."""
        maps = [
            F.interpolate(embedding(level.long()).movedim(-1, 1), size=tuple(size), mode="nearest")
            for embedding, level in zip(self.embeddings, codes, strict=True)
        ]
        return self.blocks(torch.stack(maps).sum(0))
