"""A causal transformer over code grids: the second stage of the VQ models."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vaezoo.config import BaseConfig
from vaezoo.distributions import Latent
from vaezoo.errors import VaezooError
from vaezoo.inference import inference
from vaezoo.priors.base import LatentShape, Prior


class TransformerPrior(Prior):
    """Causal transformer over the codes in raster order, coarsest level first.

    p(codes) = prod_t p(code_t | all earlier codes): every position sees every earlier one, so there is no
    blind spot, and a finer level is conditioned on all coarser ones. Each position also reads its neighbours
    directly, which it would otherwise have to learn to look up. Sampling caches keys and values.
    """

    paper = "Esser, Rombach & Ommer, Taming Transformers for High-Resolution Image Synthesis, CVPR 2021"
    recipes = {
        "*": {
            "lr": 1e-3,
            "lr_schedule": "cosine",
            "lr_warmup_steps": 100,
            "clip": 1.0,
            "batch_size": 128,
            "epochs": 10,
        }
    }

    class Config(BaseConfig):
        width: int = Field(128, ge=8, description="features per position")
        depth: int = Field(4, ge=1, le=64, description="number of blocks")
        heads: int = Field(4, ge=1, description="attention heads; must divide width")
        dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the blocks, while training")

    config: Config

    def __init__(self, config: Config, latent: LatentShape) -> None:
        super().__init__(config, latent)
        if latent.codes is None:
            raise VaezooError(f"transformer is a prior over code grids, but this model's latent is {latent}")
        if config.width % config.heads:
            raise VaezooError(f"transformer: heads={config.heads} does not divide width={config.width}")
        self.lengths = [math.prod(shape) for shape in latent.shapes]
        self.length = sum(self.lengths)
        levels = len(self.lengths)
        # Token 0 stands where there is no code; each level has codes of its own.
        self.embeddings = nn.ModuleList(
            nn.Embedding(1 + levels * latent.codes, config.width) for _ in range(3)
        )
        self.position = nn.Parameter(torch.zeros(self.length, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.heads = nn.ModuleList(nn.Linear(config.width, latent.codes) for _ in range(levels))
        for embedding in self.embeddings:
            nn.init.normal_(cast(nn.Embedding, embedding).weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        offsets = [torch.full((n,), 1 + i * latent.codes) for i, n in enumerate(self.lengths)]
        self.register_buffer("offsets", torch.cat(offsets), persistent=False)
        self.register_buffer("neighbours", _neighbours(latent.shapes), persistent=False)

    offsets: Tensor
    neighbours: Tensor

    def logits(self, z: Latent) -> list[Tensor]:
        """Logits of each code given all earlier ones: one tensor [B, positions, codes] per level."""
        levels = z if isinstance(z, tuple) else (z,)
        tokens = torch.cat([codes.flatten(1) for codes in levels], 1).long() + self.offsets
        h = self.embed(F.pad(tokens, (1, 0)), slice(None))
        for block in self.blocks:
            h = block(h)
        parts = self.norm(h).split(self.lengths, dim=1)
        return [head(part) for head, part in zip(self.heads, parts)]

    def embed(self, tokens: Tensor, positions: slice) -> Tensor:
        """What the blocks read at some positions, [B, T, width], of the tokens after a leading 0, [B, 1 + T].

        Position t reads the codes before it in the sequence, above it and under it, all earlier ones. What is
        further away comes by attention.
        """
        neighbours = self.neighbours[:, positions]
        parts = [embedding(tokens[:, index]) for embedding, index in zip(self.embeddings, neighbours)]
        return torch.stack(parts).sum(0) + self.position[positions]

    def log_prob(self, z: Latent) -> Tensor:
        levels = z if isinstance(z, tuple) else (z,)
        nll = torch.zeros(len(levels[0]), device=levels[0].device)
        for logits, codes in zip(self.logits(z), levels, strict=True):
            cross_entropy = F.cross_entropy(logits.float().mT, codes.flatten(1).long(), reduction="none")
            nll = nll + cross_entropy.sum(1)
        return -nll

    @inference
    def sample(self, n: int, generator: torch.Generator | None = None) -> Latent:
        caches = [cast(Block, block).empty_cache(n, self.length) for block in self.blocks]
        tokens = torch.zeros(n, 1 + self.length, dtype=torch.long, device=self.position.device)
        t = 0
        for head, length in zip(self.heads, self.lengths):
            for _ in range(length):
                h = self.embed(tokens, slice(t, t + 1))
                for block, cache in zip(self.blocks, caches):
                    h = block(h, cache, t)
                logits = head(self.norm(h)).squeeze(1).float()
                uniform = torch.rand(logits.shape, device=logits.device, generator=generator)
                gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
                code = (logits + gumbel).argmax(-1)  # Gumbel-max: an exact draw without leaving the device
                tokens[:, t + 1] = code + self.offsets[t]
                t += 1
        parts = (tokens[:, 1:] - self.offsets).split(self.lengths, 1)
        levels = tuple(part.view(n, *shape) for part, shape in zip(parts, self.latent.shapes))
        return levels if len(levels) > 1 else levels[0]


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

    def forward(self, h: Tensor, cache: Tensor | None = None, position: int = 0) -> Tensor:
        """h [B, T, width]. With a cache, T is 1 and h is the token at `position`."""
        batch, length, width = h.shape
        q, k, v = (
            self.qkv(self.attention_norm(h)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        if cache is None:
            # No dropout on the weights: it would rule out the fused kernels, which never hold T x T of them.
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            cache[0, :, :, position], cache[1, :, :, position] = k[:, :, 0], v[:, :, 0]
            attended = F.scaled_dot_product_attention(q, *cache[:, :, :, : position + 1])
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        h = h + F.dropout(self.out(attended), self.dropout, self.training)
        return h + F.dropout(self.mlp(h), self.dropout, self.training)

    def empty_cache(self, batch: int, length: int) -> Tensor:
        """Keys and values of all positions, [2, B, heads, T, width / heads]."""
        weight = self.qkv.weight
        shape = (2, batch, self.heads, length, weight.shape[1] // self.heads)
        return torch.zeros(shape, device=weight.device, dtype=weight.dtype)
