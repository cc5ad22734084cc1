"""What two sets of images are compared in: a map from images to vectors, with the name its numbers carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaezoo.errors import VaezooError, unknown

MAX_PIXEL_FEATURES = 256
INCEPTION_WEIGHTS = "inception_v3_google-0cc3c7bd.pth"


@dataclass(frozen=True)
class Features:
    """A map from images to vectors.

    Attributes:
        name: part of the name of every number measured in these features.
        extract: [B, C, H, W] in [0, 1] -> [B, d].
        is_inception: the one case in which a Frechet distance is called FID.
        note: how they are computed.
    """

    name: str
    extract: Callable[[Tensor], Tensor]
    is_inception: bool = False
    note: str = ""


def make_features(
    source: str | nn.Module | Callable[[Tensor], Tensor],
    image_shape: tuple[int, int, int],
    device: torch.device,
) -> Features:
    """Features by name ("pixels", "inception"), or a user's own module or function [B, C, H, W] -> [B, d]."""
    if isinstance(source, str):
        if source == "pixels":
            return pixel_features(image_shape)
        if source == "inception":
            return inception_features(image_shape, device)
        raise VaezooError(unknown("features", source, ["pixels", "inception"]))
    name = getattr(source, "__name__", type(source).__name__).strip("<>").lower()
    if isinstance(source, nn.Module):
        was_training = source.training
        source = source.to(device)

        def extract(x: Tensor, module: nn.Module = source) -> Tensor:
            module.eval()
            try:
                return module(x)
            finally:
                module.train(was_training)

        return Features(name, extract)
    return Features(name, source)


def pixel_features(image_shape: tuple[int, int, int]) -> Features:
    """Pixels, averaged over the smallest squares for which at most 256 numbers are left."""
    channels, height, width = image_shape
    side, rows, columns = 1, height, width
    while channels * rows * columns > MAX_PIXEL_FEATURES and rows * columns > 1:
        side += 1
        rows, columns = -(-height // side), -(-width // side)

    def extract(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, side, ceil_mode=True).flatten(1)

    name = f"pixels{rows}x{columns}"
    return Features(name, extract, note=f"{name}: means of {side}x{side} pixels" if side > 1 else "")


def inception_features(image_shape: tuple[int, int, int], device: torch.device) -> Features:
    """The 2048 pooled features of torchvision's Inception v3 (Szegedy et al. 2016), which define FID.

    Raises:
        VaezooError: the weights are not in torch.hub's cache (they are not downloaded here), or images do not
            have 1 or 3 channels.
    """
    if image_shape[0] not in (1, 3):
        raise VaezooError(f"features='inception' needs images of 1 or 3 channels, not {image_shape[0]}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS
    if not path.is_file():
        raise VaezooError(
            f"features='inception' needs the weights of Inception v3 at {path}; fetch them once with "
            f"python -c \"import torchvision; torchvision.models.inception_v3(weights='DEFAULT')\", "
            f"or use features='pixels'"
        )
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, init_weights=False, transform_input=False)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.fc = nn.Identity()
    network.requires_grad_(False).eval().to(device)

    def extract(x: Tensor) -> Tensor:
        x = F.interpolate(x.float(), (299, 299), mode="bilinear", antialias=True)
        # These weights expect pixels in [-1, 1].
        return network(2 * x.expand(-1, 3, -1, -1) - 1)

    note = "torchvision's weights: not comparable with FIDs from TensorFlow's of 2015"
    return Features("inception", extract, is_inception=True, note=note)
