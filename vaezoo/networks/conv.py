"""The convolutional network of the disentanglement literature, for any size that can be halved twice."""

from __future__ import annotations

from pydantic import Field, PositiveInt
from torch import nn

from vaezoo.config import BaseConfig
from vaezoo.errors import VaezooError
from vaezoo.networks.base import Network, Shape

SMALLEST = 4  # a grid of this size is not halved any further


class Conv(Network):
    """4x4 convolutions with stride 2, then one hidden linear layer (Locatello et al. 2019, table 1).

    At 64 pixels this is the published network: four halvings to 4x4. A smaller image is halved as long as
    its sides are even and above 4; the layers that are left keep the grid (3x3, stride 1).
    """

    class Config(BaseConfig):
        channels: tuple[PositiveInt, ...] = Field(
            (32, 32, 64, 64), min_length=1, description="channels of the convolutions, from the image on"
        )
        hidden: int = Field(256, ge=1, description="width of the linear layer between grid and latent")

    config: Config

    def encoder(self, image_shape: Shape, out_features: int) -> nn.Module:
        halve, height, width = self._plan(image_shape)
        layers: list[nn.Module] = []
        before = image_shape[0]
        for halved, after in zip(halve, self.config.channels):
            conv = nn.Conv2d(before, after, 4, 2, 1) if halved else nn.Conv2d(before, after, 3, 1, 1)
            layers += [conv, nn.ReLU()]
            before = after
        hidden = self.config.hidden
        layers += [nn.Flatten(), nn.Linear(before * height * width, hidden), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(hidden, out_features))

    def decoder(self, in_features: int, image_shape: Shape) -> nn.Module:
        halve, height, width = self._plan(image_shape)
        channels, hidden = self.config.channels, self.config.hidden
        grid = (channels[-1], height, width)
        layers: list[nn.Module] = [nn.Linear(in_features, hidden), nn.ReLU()]
        layers += [nn.Linear(hidden, channels[-1] * height * width), nn.ReLU(), nn.Unflatten(1, grid)]
        outputs = [image_shape[0], *channels[:-1]]
        for halved, before, after in zip(reversed(halve), reversed(channels), reversed(outputs)):
            deconv = (
                nn.ConvTranspose2d(before, after, 4, 2, 1) if halved else nn.Conv2d(before, after, 3, 1, 1)
            )
            layers += [deconv, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def _plan(self, image_shape: Shape) -> tuple[list[bool], int, int]:
        """Which layers halve the grid, and the grid's size after them all."""
        _, height, width = image_shape
        if height % 4 or width % 4:
            raise VaezooError(
                f"network 'conv' halves the image at least twice, so height and width must be multiples "
                f"of 4, not {height}x{width}; pad or resize the images, or use network='mlp'"
            )
        halve = []
        for _ in self.config.channels:
            halve.append(height % 2 == 0 and width % 2 == 0 and min(height, width) > SMALLEST)
            if halve[-1]:
                height, width = height // 2, width // 2
        return halve, height, width
