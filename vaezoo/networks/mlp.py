"""Fully connected encoder and decoder."""

from __future__ import annotations

import math
from itertools import pairwise

from pydantic import Field, PositiveInt
from torch import nn

from vaezoo.config import BaseConfig
from vaezoo.networks.base import Network, Shape


class MLP(Network):
    """Linear layers with ReLU between; the decoder mirrors the encoder. No hidden layers: a linear map."""

    class Config(BaseConfig):
        hidden: tuple[PositiveInt, ...] = Field(
            (512, 256), description="widths of the encoder's hidden layers, from the image on"
        )

    config: Config

    def encoder(self, image_shape: Shape, out_features: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), *self.layers(math.prod(image_shape), *self.config.hidden, out_features)
        )

    def decoder(self, in_features: int, image_shape: Shape) -> nn.Module:
        layers = self.layers(in_features, *reversed(self.config.hidden), math.prod(image_shape))
        return nn.Sequential(*layers, nn.Unflatten(1, image_shape))

    def layers(self, *widths: int) -> list[nn.Module]:
        """Layers from each width to the next, the last one linear."""
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return layers[:-1]
