"""Causal layers over grids and sequences, each for all positions at once or for one, with a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend_from(position: Tensor, q: Tensor, k: Tensor, v: Tensor, cache: Tensor) -> Tensor:
    """Attention of one position to itself and all earlier ones, [B, heads, 1, d].

    Args:
        position: long [1].
        q, k, v: of this position, [B, heads, 1, d]; k and v are put into the cache.
        cache: keys and values, [2, B, heads, T, d].
    """
    cache.index_copy_(3, position, torch.stack([k, v]).to(cache.dtype))
    # Over the whole cache, masked, rather than a slice that grows: a captured step has fixed shapes.
    earlier = torch.arange(cache.shape[3], device=position.device) <= position
    return F.scaled_dot_product_attention(q, cache[0], cache[1], attn_mask=earlier.view(1, 1, 1, -1))


class Place:
    """One position of a grid, for layers that read a window of `reach` rows above it and columns beside it
    from a cache [B, C, (reach + H) * (2 reach + W)], padded with zeros on top and at both sides.

    Args:
        position: index of the position in raster order, long [1]; -1 is a place in the padding.
        width: W.
        reach: rows and columns that the windows reach.
    """

    def __init__(self, position: Tensor, width: int, reach: int) -> None:
        padded = width + 2 * reach
        # Rounds down, so that position -1 is in row -1.
        self.column = position % width
        self.centre = ((position - self.column) // width + reach) * padded + self.column + reach
        steps = torch.arange(-reach, reach + 1, device=position.device)
        self.window = self.centre + (steps[: reach + 1, None] * padded + steps).flatten()


class CausalConv(nn.Module):
    """Convolution that sees rows above and, in its own row, what is to the left; and itself unless `strict`.

    Args:
        inputs: channels.
        outputs: channels.
        reach: rows above and columns to either side that it sees.
        strict: leave out the position itself.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, reach: int, strict: bool = False) -> None:
        super().__init__()
        self.reach = reach
        mask = torch.ones(reach + 1, 2 * reach + 1)
        mask[-1, reach + (not strict) :] = 0
        self.register_buffer("mask", mask, persistent=False)
        taps = reach * (2 * reach + 1) + reach + (not strict)
        bound = (inputs * taps) ** -0.5  # as torch.nn.Conv2d starts, of the inputs that it sees
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *mask.shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, h: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        r = self.reach
        return F.conv2d(F.pad(h, (r, r, r, 0)), self.weight * self.mask, self.bias)

    def cache(self, like: Tensor) -> Tensor:
        """Room for the inputs at all positions of grids like [B, C, H, W]."""
        batch, _, height, width = like.shape
        size = (height + self.reach) * (width + 2 * self.reach)
        return like.new_zeros(batch, self.weight.shape[1], size)

    def step(self, h: Tensor, cache: Tensor, written: Place, read: Place) -> Tensor:
        """The output at one place, [B, outputs], once the input h [B, inputs] of another is in the cache."""
        cache.index_copy_(2, written.centre, h.unsqueeze(2).to(cache.dtype))
        window = cache.index_select(2, read.window)
        return F.linear(window.flatten(1), (self.weight * self.mask).flatten(1), self.bias)
