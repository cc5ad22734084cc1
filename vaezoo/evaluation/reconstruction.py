"""How close are reconstructions to the images?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vaezoo.evaluation.report import Results, Skipped, average

if TYPE_CHECKING:
    from vaezoo.evaluation.observe import Observed

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
MSE_FLOOR = 1e-10


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Squared error of each image, averaged over its channels and pixels. a, b [B, C, H, W] -> [B]."""
    return (a - b).square().flatten(1).mean(1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, 10 log10(1 / mse), for images with range 1: [B] dB.

    Errors below 1e-10 count as 1e-10, so that equal images have 100 dB and not infinity."""
    return -10 * torch.log10(mse(a, b).clamp_min(MSE_FLOOR))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004, eq. 13), for images with range 1: [B] in [-1, 1].

    A Gaussian window of 11x11 pixels and sigma 1.5, C1 = .01^2, C2 = .03^2, at the positions where the window
    lies inside the image. Images below 11 pixels have the largest odd window that fits, with sigma in proportion.
    """
    channels, height, width = a.shape[1:]
    size = min(SSIM_WINDOW, height - 1 + height % 2, width - 1 + width % 2)
    offsets = torch.arange(size, device=a.device, dtype=a.dtype) - size // 2
    window = torch.softmax(-0.5 * (offsets / (SSIM_SIGMA * size / SSIM_WINDOW)).square(), 0)

    # The window is a product of two, so two one-dimensional convolutions do; every map is a channel.
    maps = torch.cat([a, b, a * a, b * b, a * b], 1).flatten(0, 1).unsqueeze(1)
    maps = F.conv2d(F.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mean_a, mean_b, aa, bb, ab = maps.view(len(a), 5, channels, *maps.shape[2:]).unbind(1)
    var_a, var_b, covariance = aa - mean_a.square(), bb - mean_b.square(), ab - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def measure_reconstruction(observed: Observed) -> Results:
    """Errors of the means of p(x|z) at the mean of q(z|x), and the distortion at a draw of q(z|x)."""
    columns = observed.per_image
    results: Results = {
        "mse": average(columns["mse"], "per pixel", "lower"),
        "psnr": average(columns["psnr"], "dB", "higher", "mean over images of each image's PSNR"),
    }
    window = min(SSIM_WINDOW, *(side - 1 + side % 2 for side in observed.shape[1:]))
    if "ssim" in columns:
        results["ssim"] = average(columns["ssim"], "", "higher", f"Gaussian window {window}x{window}")
    else:
        results["ssim"] = Skipped("images are smaller than the smallest window, 3x3")
    results["distortion"] = average(columns["distortion"], "nats per image", "lower", "at z ~ q(z|x)")
    return results
