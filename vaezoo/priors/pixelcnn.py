"""Gated PixelCNN over code grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vaezoo.errors import VaezooError
from vaezoo.priors.base import LatentShape
from vaezoo.priors.grid import CausalNetwork, GridPrior


class PixelCNNPrior(GridPrior):
    """Gated PixelCNN: two stacks of convolutions, one over all rows above, one over the row itself.

    The vertical stack feeds the horizontal one, so that together they see every earlier position within
    their reach, `layers` * (`kernel` // 2) rows and columns, without the blind spot of masked convolutions.
    Sampling computes the vertical stack once for each row, the horizontal one once for each position.
    """

    paper = (
        "van den Oord et al., Conditional Image Generation with PixelCNN Decoders, NeurIPS 2016, "
        "arXiv:1606.05328"
    )

    class Config(GridPrior.Config):
        layers: int = Field(8, ge=1, le=64, description="gated layers")
        kernel: int = Field(3, ge=3, description="width of the convolutions, odd")

    config: Config

    def __init__(self, config: Config, latent: LatentShape) -> None:
        if config.kernel % 2 == 0:
            raise VaezooError(f"pixelcnn: kernel={config.kernel} is not valid, it must be odd")
        super().__init__(config, latent)

    def network(self) -> CausalNetwork:
        c = self.config
        return PixelCNN(self.codes, c.width, c.layers, c.kernel // 2, c.dropout)


@dataclass
class Cache:
    """Of one layer.

    Attributes:
        vertical: inputs of the vertical convolution, padded, [B, C, r + h, w + 2r].
        bias: what the vertical stack and the context add to the horizontal gates of this row, [B, 2C, 1, w].
        horizontal: inputs of the horizontal convolution in this row, padded, [B, C, r + w].
    """

    vertical: Tensor
    bias: Tensor
    horizontal: Tensor


class PixelCNN(CausalNetwork):
    """The network of one level; `reach` is the half width of the convolutions."""

    def __init__(self, codes: int, width: int, layers: int, reach: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Gated(width, reach, dropout) for _ in range(layers))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, codes, 1)
        )

    def forward(self, embedded: Tensor, context: Tensor) -> Tensor:
        # Down by one row, and right by one column: from here on, each position may see itself.
        v = F.pad(embedded, (0, 0, 1, 0))[:, :, :-1]
        h = F.pad(embedded, (1, 0))[:, :, :, :-1]
        for module in self.layers:
            layer = cast(Gated, module)
            r = layer.reach
            v, bias = layer.vertical(F.pad(v, (r, r, r, 0)), context)
            h = layer.horizontal(h, F.pad(h, (r, 0)), bias)
        return self.head(h).flatten(2).mT

    def begin(self, context: Tensor) -> tuple[Tensor, list[Cache]]:
        batch, channels, height, width = context.shape
        r = cast(Gated, self.layers[0]).reach
        return context, [
            Cache(
                context.new_zeros(batch, channels, r + height, width + 2 * r),
                context.new_zeros(batch, 2 * channels, 1, width),
                context.new_zeros(batch, channels, r + width),
            )
            for _ in self.layers
        ]

    def begin_row(self, cache: tuple[Tensor, list[Cache]], above: Tensor, row: Tensor) -> None:
        context = cache[0].index_select(2, row)
        v = above
        for module, own in zip(self.layers, cache[1]):
            layer = cast(Gated, module)
            r = layer.reach
            own.vertical.index_copy_(2, row + r, F.pad(v, (r, r)).to(own.vertical.dtype))
            rows = row + torch.arange(r + 1, device=row.device)
            v, bias = layer.vertical(own.vertical.index_select(2, rows), context)
            own.bias.copy_(bias)

    def step(self, cache: tuple[Tensor, list[Cache]], previous: Tensor, position: Tensor) -> Tensor:
        column = position % cache[0].shape[3]
        h = (previous * (column > 0))[:, :, None, None]
        for module, own in zip(self.layers, cache[1]):
            layer = cast(Gated, module)
            own.horizontal.index_copy_(2, column + layer.reach, h.squeeze(3).to(own.horizontal.dtype))
            columns = column + torch.arange(layer.reach + 1, device=column.device)
            window = own.horizontal.index_select(2, columns).unsqueeze(2)
            h = layer.horizontal(h, window, own.bias.index_select(3, column))
        return self.head(h).flatten(1)


class Gated(nn.Module):
    """One layer of both stacks (van den Oord et al. 2016, figure 2)."""

    def __init__(self, width: int, reach: int, dropout: float) -> None:
        super().__init__()
        self.reach = reach
        self.rows = nn.Conv2d(width, 2 * width, (reach + 1, 2 * reach + 1))
        self.row = nn.Conv2d(width, 2 * width, (1, reach + 1))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.context = nn.Conv2d(width, 4 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def vertical(self, v: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The vertical stack, of padded inputs; and what it and the context add to the horizontal gates."""
        features = self.rows(v)
        to_vertical, to_horizontal = self.context(context).chunk(2, 1)
        return gate(features + to_vertical), self.link(features) + to_horizontal

    def horizontal(self, h: Tensor, window: Tensor, bias: Tensor) -> Tensor:
        """The horizontal stack: h and what its convolution makes of the padded inputs."""
        return h + self.dropout(self.out(gate(self.row(window) + bias)))


def gate(h: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) of the two halves of the channels (eq. 2)."""
    a, b = h.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)
