"""A causal transformer over code grids: the second stage of the VQ models."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vaezoo.errors import VaezooError
from vaezoo.priors.base import LatentShape
from vaezoo.priors.causal import attend_from
from vaezoo.priors.codes import CodePrior, Codes


class TransformerPrior(CodePrior):
    """Causal transformer over the codes in raster order, coarsest level first.

    Every position sees every earlier one, so there is no blind spot, and a finer level is conditioned on all
    coarser ones. Each position also reads its neighbours directly, which it would otherwise have to learn to
    look up. Sampling caches keys and values.
    """

    paper = "Esser, Rombach & Ommer, Taming Transformers for High-Resolution Image Synthesis, CVPR 2021"

    class Config(CodePrior.Config):
        width: int = Field(128, ge=8, description="features per position")
        depth: int = Field(4, ge=1, le=64, description="number of blocks")
        heads: int = Field(4, ge=1, description="attention heads; must divide width")
        dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the blocks, while training")

    config: Config

    def __init__(self, config: Config, latent: LatentShape) -> None:
        super().__init__(config, latent)
        if config.width % config.heads:
            raise VaezooError(f"transformer: heads={config.heads} does not divide width={config.width}")
        self.lengths = [math.prod(shape) for shape in latent.shapes]
        self.starts = [0, *accumulate(self.lengths)]
        length, levels = self.starts[-1], len(self.lengths)
        # Token 0 stands where there is no code; each level has codes of its own.
        self.embeddings = nn.ModuleList(nn.Embedding(1 + levels * self.codes, config.width) for _ in range(3))
        self.position = nn.Parameter(torch.zeros(length, config.width))
        self.label = nn.Embedding(config.classes + 1, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.heads = nn.ModuleList(nn.Linear(config.width, self.codes) for _ in range(levels))
        for embedding in (*self.embeddings, self.label):
            nn.init.normal_(cast(nn.Embedding, embedding).weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        self.register_buffer("neighbours", _neighbours(latent.shapes), persistent=False)

    neighbours: Tensor

    def logits(self, codes: Codes, labels: Tensor) -> list[Tensor]:
        h = self.embed(self.tokens(codes), labels, slice(None))
        for block in self.blocks:
            h = block(h)
        parts = self.norm(h).split(self.lengths, dim=1)
        return [head(part) for head, part in zip(self.heads, parts)]

    def tokens(self, codes: Codes) -> Tensor:
        """The sequence of all levels after a leading 0, [B, 1 + T]."""
        levels = [level.flatten(1).long() + (1 + i * self.codes) for i, level in enumerate(codes)]
        return F.pad(torch.cat(levels, 1), (1, 0))

    def embed(self, tokens: Tensor, labels: Tensor, positions: slice | Tensor) -> Tensor:
        """What the blocks read at some positions of the sequence, [B, T', width].

        Position t reads the codes before it in the sequence, above it and under it, all earlier ones. What is
        further away comes by attention.
        """
        neighbours = self.neighbours[:, positions]
        parts = [embedding(tokens[:, index]) for embedding, index in zip(self.embeddings, neighbours)]
        return torch.stack(parts).sum(0) + self.position[positions] + self.label(labels).unsqueeze(1)

    def begin(self, level: int, codes: Codes, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Keys and values of the coarser levels, in caches that this level has room in; the labels."""
        start, end = self.starts[level], self.starts[level + 1]
        caches = [cast(Block, block).empty_cache(len(labels), end) for block in self.blocks]
        if start:
            h = self.embed(self.tokens(codes), labels, slice(0, start))
            for block, cache in zip(self.blocks, caches):
                h = block(h, cache[:, :, :, :start])
        return caches, labels

    def step(self, level: int, cache: tuple[list[Tensor], Tensor], codes: Codes, position: Tensor) -> Tensor:
        caches, labels = cache
        t = position + self.starts[level]
        h = self.embed(self.tokens(codes), labels, t)
        for block, keys_values in zip(self.blocks, caches):
            h = block(h, keys_values, t)
        return self.heads[level](self.norm(h)).squeeze(1)


def _neighbours(shapes: tuple[tuple[int, ...], ...]) -> Tensor:
    """For each position of the sequence the one before it, above it, and under it on the next coarser level,
    [3, T]: indices into the sequence after a leading entry that stands for none."""
    rows, start, coarser = [], 1, None
    for height, width in shapes:
        index = start + torch.arange(height * width).view(height, width)
        above = F.pad(index[:-1], (0, 0, 1, 0))
        if coarser is None:
            under = torch.zeros_like(index)
        else:
            y = torch.arange(height) * coarser.shape[0] // height
            x = torch.arange(width) * coarser.shape[1] // width
            under = coarser[y][:, x]
        rows.append(torch.stack([index - 1, above, under]).flatten(1))
        start, coarser = start + height * width, index
    return torch.cat(rows, 1)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, h: Tensor, cache: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """h [B, T, width] from the first position on; keys and values go into the cache, if there is one.
        With a position, long [1], h is that of this position alone, and the earlier ones are in the cache."""
        batch, length, width = h.shape
        q, k, v = (
            self.qkv(self.attention_norm(h))
            .view(batch, length, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        if position is None:
            if cache is not None:
                cache.copy_(torch.stack([k, v]))
            # No dropout on the weights: it would rule out the fused kernels, which never hold T x T of them.
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            assert cache is not None
            attended = attend_from(position, q, k, v, cache)
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        h = h + F.dropout(self.out(attended), self.dropout, self.training)
        return h + F.dropout(self.mlp(h), self.dropout, self.training)

    def empty_cache(self, batch: int, length: int) -> Tensor:
        """Keys and values of all positions, [2, B, heads, T, width / heads]."""
        weight = self.qkv.weight
        shape = (2, batch, self.heads, length, weight.shape[1] // self.heads)
        return torch.zeros(shape, device=weight.device, dtype=weight.dtype)
