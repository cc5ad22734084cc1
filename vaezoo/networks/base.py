"""The contract of a network: a pair of modules for given shapes."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from vaezoo.config import BaseConfig

Shape = tuple[int, int, int]


class Network:
    """A recipe for an encoder and its mirror image.

    Raises (both methods):
        VaezooError: images of this size cannot pass through the network.
    """

    Config: ClassVar[type[BaseConfig]] = BaseConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    def encoder(self, image_shape: Shape, out_features: int) -> nn.Module:
        """[B, *image_shape] -> [B, out_features]."""
        raise NotImplementedError

    def decoder(self, in_features: int, image_shape: Shape) -> nn.Module:
        """[B, in_features] -> [B, *image_shape]; its channels are those of the likelihood's parameters."""
        raise NotImplementedError
