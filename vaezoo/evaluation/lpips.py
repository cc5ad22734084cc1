"""LPIPS, where its weights are at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from vaezoo.errors import VaezooError
from vaezoo.evaluation.features import cached_weights
from vaezoo.evaluation.report import Skipped
from vaezoo.random import seeded

#: Of pairs of images a, b [B, C, H, W] in [0, 1]: [B].
Lpips: TypeAlias = Callable[[Tensor, Tensor], Tensor]
SMALLEST = 31  # AlexNet pools anything smaller down to nothing


def make_lpips(image_shape: tuple[int, int, int], device: torch.device) -> Lpips | Skipped:
    """Learned perceptual distance of pairs of images (Zhang et al. 2018), version 0.1 with AlexNet.

    Skipped if AlexNet's weights are not in torch.hub's cache (they are not downloaded here), or if the images
    are too small or have neither 1 nor 3 channels.
    """
    channels, height, width = image_shape
    if channels not in (1, 3) or min(height, width) < SMALLEST:
        return Skipped(f"LPIPS needs images of 1 or 3 channels and at least {SMALLEST}x{SMALLEST} pixels")
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import AlexNet_Weights

    fetch = "import torchvision; torchvision.models.alexnet(weights='DEFAULT')"
    try:
        # torchmetrics reads this file again, with less care: here anything but tensors is refused.
        cached_weights(AlexNet_Weights.DEFAULT.url.rpartition("/")[2], "LPIPS", fetch)
    except VaezooError as error:
        return Skipped(str(error))
    with seeded(0, "cpu"):  # it draws weights before it reads them
        network = LearnedPerceptualImagePatchSimilarity(net_type="alex").net.to(device)

    def lpips(a: Tensor, b: Tensor) -> Tensor:
        a, b = (x.float().expand(-1, 3, -1, -1) for x in (a, b))
        return network(a, b, normalize=True).flatten()

    return lpips
