"""A small residual network, one stage for each halving."""

from __future__ import annotations

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from vaezoo.config import BaseConfig
from vaezoo.errors import VaezooError
from vaezoo.networks.base import Network, Shape


class ResNet(Network):
    """Pre-activation residual blocks (He et al. 2016) with group norm and SiLU, as in the autoencoder of
    latent diffusion. Group norm, so that an image's code never depends on the rest of its batch."""

    class Config(BaseConfig):
        channels: tuple[PositiveInt, ...] = Field(
            (32, 64, 64), min_length=1, description="channels of the stages; all but the first halve the grid"
        )
        blocks: int = Field(1, ge=1, le=64, description="residual blocks in a stage")

    config: Config

    def encoder(self, image_shape: Shape, out_features: int) -> nn.Module:
        height, width = self._grid(image_shape)
        channels = self.config.channels
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], channels[0], 3, 1, 1)]
        for stage, after in enumerate(channels):
            if stage:
                layers.append(nn.Conv2d(channels[stage - 1], after, 4, 2, 1))
            layers += [ResidualBlock(after) for _ in range(self.config.blocks)]
        layers += [_norm(channels[-1]), nn.SiLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(channels[-1] * height * width, out_features))

    def decoder(self, in_features: int, image_shape: Shape) -> nn.Module:
        height, width = self._grid(image_shape)
        channels = self.config.channels
        grid = (channels[-1], height, width)
        layers: list[nn.Module] = [
            nn.Linear(in_features, channels[-1] * height * width),
            nn.Unflatten(1, grid),
        ]
        for stage in reversed(range(len(channels))):
            layers += [ResidualBlock(channels[stage]) for _ in range(self.config.blocks)]
            if stage:
                layers.append(nn.ConvTranspose2d(channels[stage], channels[stage - 1], 4, 2, 1))
        layers += [_norm(channels[0]), nn.SiLU(), nn.Conv2d(channels[0], image_shape[0], 3, 1, 1)]
        return nn.Sequential(*layers)

    def _grid(self, image_shape: Shape) -> tuple[int, int]:
        _, height, width = image_shape
        factor = 2 ** (len(self.config.channels) - 1)
        if height % factor or width % factor:
            raise VaezooError(
                f"network 'resnet' with channels={self.config.channels} halves the image "
                f"{len(self.config.channels) - 1} times, so height and width must be multiples of {factor}, "
                f"not {height}x{width}; use fewer stages or another image size"
            )
        return height // factor, width // factor


class ResidualBlock(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h)))))), [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
            _norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)
