"""Fully convolutional networks between images and grids of features: the VQ models' trunk."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """h + conv1x1(relu(conv3x3(relu(h)))), as van den Oord et al. 2017, section 4.1, describe."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels, hidden, 3, 1, 1)
        self.conv1 = nn.Conv2d(hidden, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv1(F.relu(self.conv3(F.relu(h))))


def halvings(factor: int) -> int:
    """How many stride-2 layers make `factor`, a power of two."""
    return factor.bit_length() - 1


def grid_encoder(inputs: int, channels: int, hidden: int, blocks: int, factor: int) -> nn.Sequential:
    """[B, inputs, H, W] -> [B, channels, H / factor, W / factor]: stride-2 convolutions, then residuals."""
    steps = halvings(factor)
    widths = [inputs, *[channels // 2] * (steps - 1), channels]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
    layers.append(nn.Conv2d(channels, channels, 3, 1, 1))
    return nn.Sequential(*layers, *(Residual(channels, hidden) for _ in range(blocks)), nn.ReLU())


def grid_decoder(
    inputs: int, channels: int, outputs: int, hidden: int, blocks: int, factor: int
) -> nn.Sequential:
    """[B, inputs, h, w] -> [B, outputs, h * factor, w * factor]: residuals, then transposed convolutions."""
    steps = halvings(factor)
    widths = [channels, *[channels // 2] * (steps - 1), outputs]
    layers: list[nn.Module] = [nn.Conv2d(inputs, channels, 3, 1, 1)]
    layers += [Residual(channels, hidden) for _ in range(blocks)]
    for before, after in pairwise(widths):
        layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
    return nn.Sequential(*layers)
