"""How close are reconstructions to the images?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vaezoo.evaluation.frechet import frechet
from vaezoo.evaluation.report import Metric, Result, Results, Skipped, average

if TYPE_CHECKING:
    from vaezoo.evaluation.features import Features
    from vaezoo.evaluation.lpips import Lpips
    from vaezoo.evaluation.observe import Observed

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
MS_SSIM_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
MS_SSIM_SMALLEST = SSIM_WINDOW << (len(MS_SSIM_POWERS) - 1)
MSE_FLOOR = 1e-10


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Absolute error of each image, averaged over its channels and pixels. a, b [B, C, H, W] -> [B]."""
    return (a - b).abs().flatten(1).mean(1)


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
    return similarity(a, b)[0]


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image (Wang et al. 2003), for images with range 1: [B].

    Contrast and structure at five scales, each half as large as the one before, and luminance at the last,
    to the paper's powers. As elsewhere, factors below 0 count as 0, since their powers do not exist.
    a, b [B, C, H, W], with H and W at least 176, so that the window of 11x11 fits at every scale.
    """
    result = torch.ones(len(a), device=a.device, dtype=a.dtype)
    for power in MS_SSIM_POWERS[:-1]:
        result = result * similarity(a, b)[1].clamp_min(0) ** power
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return result * similarity(a, b)[0].clamp_min(0) ** MS_SSIM_POWERS[-1]


def similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM of each image, and the mean of its factor of contrast and structure, [B] each. See `ssim`."""
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
    return (luminance * structure).flatten(1).mean(1), structure.flatten(1).mean(1)


def ssim_window(height: int, width: int) -> int:
    """Side of the window: 11, or the largest odd number that fits."""
    return min(SSIM_WINDOW, height - 1 + height % 2, width - 1 + width % 2)


def measure_reconstruction(observed: Observed, features: Features, lpips: Lpips | Skipped) -> Results:
    """Errors of the means of p(x|z) at the mean of q(z|x), and the distortion at a draw of q(z|x).

    Args:
        observed: with the features of images and reconstructions.
        features: what those are.
        lpips: what measured it, or why nothing did.
    """
    columns = observed.per_image
    window = ssim_window(*observed.shape[1:])
    results: Results = {
        "mse": average(columns["mse"], "per pixel", "lower"),
        "l1": average(columns["l1"], "per pixel", "lower"),
        "psnr": average(columns["psnr"], "dB", "higher", "mean over images of each image's PSNR"),
        "ssim": Skipped("images are smaller than the smallest window, 3x3"),
        "ms_ssim": Skipped(
            f"five scales need images of at least {MS_SSIM_SMALLEST}x{MS_SSIM_SMALLEST} pixels"
        ),
    }
    if "ssim" in columns:
        results["ssim"] = average(columns["ssim"], "", "higher", f"Gaussian window {window}x{window}")
    if "ms_ssim" in columns:
        results["ms_ssim"] = average(columns["ms_ssim"], "", "higher", "five scales")
    if isinstance(lpips, Skipped):
        results["lpips"] = lpips
    else:
        results["lpips"] = average(columns["lpips"], "", "lower", "version 0.1, AlexNet")
    name = "rfid" if features.is_inception else f"rfd_{features.name}"
    results[name] = _reconstruction_frechet(observed, features)
    results["distortion"] = average(columns["distortion"], "nats per image", "lower", "at z ~ q(z|x)")
    return results


def _reconstruction_frechet(observed: Observed, features: Features) -> Result:
    """Frechet distance between the features of the images and those of their own reconstructions."""
    real, reconstructed = observed.features_real, observed.features_reconstructed
    assert real is not None, "the pass was given features"
    assert reconstructed is not None
    if len(real) < 2:
        return Skipped("a covariance needs at least 2 images")
    if not bool(reconstructed.isfinite().all()):
        return Skipped("some features of the reconstructions are not finite")
    value, variance = frechet(reconstructed, real, paired=True)
    squared, error = torch.stack([value, variance.sqrt()]).tolist()
    note = "; ".join(filter(None, [features.note, "se by the delta method, over pairs"]))
    return Metric(squared, len(real), "squared distance", error, "lower", note)
