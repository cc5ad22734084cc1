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
    """Structural similarity of each image (Wang et al. 2004, eq. 13), for images with range 1: [B].

    A Gaussian window of 11x11 pixels and sigma 1.5, C1 = .01^2, C2 = .03^2, at the positions where the window
    lies inside the image. Smaller images have the largest odd window that fits, with sigma in proportion.
    a, b [B, C, H, W], with H and W at least 3.
    """
    height, width = a.shape[-2:]
    size = ssim_window(height, width)
    offsets = torch.arange(size, device=a.device, dtype=a.dtype) - size // 2
    window = torch.softmax(-0.5 * (offsets / (SSIM_SIGMA * size / SSIM_WINDOW)).square(), 0)

    # The window is a product of two, and a convolution along one side is a product with a banded matrix: ten
    # times as fast as conv2d on a CPU.
    along_rows, along_columns = (
        torch.stack([F.pad(window, (i, side - size - i)) for i in range(side - size + 1)])
        for side in (height, width)
    )
    maps = along_rows @ torch.stack([a, b, a * a, b * b, a * b]) @ along_columns.T
    mean_a, mean_b, aa, bb, ab = maps.unbind(0)
    var_a, var_b, covariance = aa - mean_a.square(), bb - mean_b.square(), ab - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def ssim_window(height: int, width: int) -> int:
    """Side of the window: 11, or the largest odd number that fits."""
    return min(SSIM_WINDOW, height - 1 + height % 2, width - 1 + width % 2)


def measure_reconstruction(observed: Observed) -> Results:
    """Errors of the means of p(x|z) at the mean of q(z|x), and the distortion at a draw of q(z|x)."""
    columns = observed.per_image
    results: Results = {
        "mse": average(columns["mse"], "per pixel", "lower"),
        "psnr": average(columns["psnr"], "dB", "higher", "mean over images of each image's PSNR"),
    }
    window = ssim_window(*observed.shape[1:])
    if "ssim" in columns:
        results["ssim"] = average(columns["ssim"], "", "higher", f"Gaussian window {window}x{window}")
    else:
        results["ssim"] = Skipped("images are smaller than the smallest window, 3x3")
    results["distortion"] = average(columns["distortion"], "nats per image", "lower", "at z ~ q(z|x)")
    return results
