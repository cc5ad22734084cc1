from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from vaezoo.evaluation.features import Features
from vaezoo.evaluation.frechet import frechet
from vaezoo.evaluation.observe import Observed
from vaezoo.evaluation.reconstruction import (
    MS_SSIM_POWERS,
    l1,
    measure_reconstruction,
    ms_ssim,
    mse,
    psnr,
    ssim,
    ssim_window,
)
from vaezoo.evaluation.report import Metric, Skipped


@pytest.mark.parametrize(
    "shape", [(3, 1, 28, 28), (2, 3, 32, 20), (4, 1, 8, 8), (2, 1, 11, 12), (2, 2, 3, 5)]
)
def test_psnr_and_ssim_equal_those_of_scikit_image(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(shape, dtype=torch.float64, generator=generator)
    b = (a + 0.2 * torch.randn(shape, dtype=torch.float64, generator=generator)).clamp(0, 1)
    sigma = 1.5 * ssim_window(*shape[2:]) / 11
    for i in range(len(a)):
        x, y = a[i].numpy(), b[i].numpy()
        expected = structural_similarity(
            x,
            y,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=sigma,
            use_sample_covariance=False,
        )
        assert ssim(a, b)[i].item() == pytest.approx(expected, abs=1e-6)
        assert psnr(a, b)[i].item() == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1.0), abs=1e-6)


def test_ssim_in_float32_is_that_of_float64() -> None:
    a = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    a[:4] = a[:4] * 1e-3 + 0.9  # flat and bright: the variances are small differences of large numbers
    b = (a + 0.01).clamp(0, 1)
    torch.testing.assert_close(ssim(a, b).double(), ssim(a.double(), b.double()), atol=1e-3, rtol=0)


def test_equal_images_have_a_finite_psnr_and_ssim_1() -> None:
    x = torch.rand(2, 1, 12, 12)
    assert psnr(x, x).tolist() == pytest.approx([100, 100])
    assert ssim(x, x).tolist() == pytest.approx([1, 1])


def test_psnr_is_the_mean_over_images_not_that_of_the_mean_error() -> None:
    a = torch.zeros(2, 1, 4, 4)
    b = torch.stack([torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 1.0)])
    assert mse(a, b).tolist() == pytest.approx([0.01, 1.0])
    assert psnr(a, b).mean().item() == pytest.approx(10.0, abs=1e-5)
    assert -10 * math.log10(mse(a, b).mean()) == pytest.approx(2.97, abs=0.01)


def test_l1_by_hand() -> None:
    a = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    b = torch.tensor([[[[0.5, 0.0], [0.5, 0.25]]], [[[0.0, 0.0], [0.0, 1.0]]]])
    assert l1(a, b).tolist() == pytest.approx([1.75 / 4, 0.25])
    assert mse(a, b).tolist() == pytest.approx([1.3125 / 4, 0.25])


# --- MS-SSIM ---------------------------------------------------------------------------------------------


def pair(shape: tuple[int, ...], noise: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(shape, dtype=torch.float64, generator=generator)
    return a, (a + noise * torch.randn(shape, dtype=torch.float64, generator=generator)).clamp(0, 1)


def multiscale(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2003 for an image [C, H, W], with a two-dimensional window."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def local(z: np.ndarray) -> np.ndarray:
        return np.stack([convolve2d(channel, window, "valid") for channel in z])

    def half(z: np.ndarray) -> np.ndarray:
        """Means of 2x2 pixels; an odd last row or column is dropped."""
        c, h, w = z.shape[0], z.shape[1] // 2, z.shape[2] // 2
        return z[:, : 2 * h, : 2 * w].reshape(c, h, 2, w, 2).mean((2, 4))

    result = 1.0
    for scale, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            x, y = half(x), half(y)
        mx, my, xx, yy, xy = (local(z) for z in (x, y, x * x, y * y, x * y))
        contrast = (2 * (xy - mx * my) + 0.03**2) / (xx - mx**2 + yy - my**2 + 0.03**2)
        luminance = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        result *= (contrast if scale < 4 else contrast * luminance).mean() ** power
    return result


@pytest.mark.parametrize("shape", [(2, 1, 176, 192), (1, 3, 177, 181)])
def test_ms_ssim_is_its_formula(shape: tuple[int, ...]) -> None:
    a, b = pair(shape)
    expected = [multiscale(x.numpy(), y.numpy()) for x, y in zip(a, b)]
    assert ms_ssim(a, b).tolist() == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_of_flat_images_is_the_luminance_of_the_last_scale() -> None:
    a, b = (torch.full((1, 1, 176, 176), level, dtype=torch.float64) for level in (0.3, 0.8))
    luminance = (2 * 0.3 * 0.8 + 1e-4) / (0.3**2 + 0.8**2 + 1e-4)
    assert ms_ssim(a, b).item() == pytest.approx(luminance ** MS_SSIM_POWERS[-1], abs=1e-9)
    x, _ = pair((1, 1, 176, 176))
    assert ms_ssim(x, x).item() == pytest.approx(1)
    assert ms_ssim(x, 1 - x).item() == 0  # structure is opposite: factors below 0 count as 0
    assert sum(MS_SSIM_POWERS) == pytest.approx(1, abs=2e-4)


# --- Frechet distance of reconstructions -----------------------------------------------------------------


def observed(real: Tensor, reconstructed: Tensor) -> Observed:
    """What `observe` would have collected from images of 8x8, as far as the distance asks for it."""
    return Observed(
        per_image=dict.fromkeys(("mse", "l1", "psnr", "ssim", "distortion"), torch.ones(len(real))),
        features_real=real,
        features_reconstructed=reconstructed,
        means=None,
        draws=None,
        log_variances=None,
        codes=None,
        codebook=None,
        deterministic=True,
        measure="binary",
        binary=True,
        eight_bit=True,
        shape=(1, 8, 8),
    )


def rfd(real: Tensor, reconstructed: Tensor, inception: bool = False) -> Metric | Skipped:
    features = Features("nets", lambda x: x, is_inception=inception)
    results = measure_reconstruction(observed(real, reconstructed), features, Skipped("no weights"))
    found = results["rfid" if inception else "rfd_nets"]
    assert isinstance(found, Metric | Skipped)
    return found


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rfd_is_0_for_perfect_reconstructions_and_the_closed_form_for_a_shift() -> None:
    """Scaling by s and shifting by u: |(s - 1) m + u|^2 + (1 - s)^2 tr C, with no error of sampling."""
    real, scale = normal(200, 6, 0), 0.7
    perfect = rfd(real, real)
    assert isinstance(perfect, Metric)
    assert perfect.value == pytest.approx(0, abs=1e-9)
    assert perfect.se == pytest.approx(0, abs=1e-6)
    shift = torch.linspace(-1, 1, 6, dtype=torch.float64)
    moved = rfd(real, scale * real + shift, inception=True)
    assert isinstance(moved, Metric)
    expected = ((scale - 1) * real.mean(0) + shift).square().sum() + (1 - scale) ** 2 * real.var(0).sum()
    assert moved.value == pytest.approx(expected.item(), abs=1e-9)
    assert (moved.n, moved.better) == (200, "lower")


def test_standard_error_of_rfd_is_that_of_repeated_sampling() -> None:
    """Reconstructions go with their images: as if they did not, the error would come out far too large."""
    values, errors, unpaired = [], [], []
    for seed in range(300):
        real = normal(300, 4, seed)
        reconstructed = 0.8 * real + 0.5 + 0.1 * normal(300, 4, 1000 + seed)
        found = rfd(real, reconstructed)
        assert isinstance(found, Metric)
        assert found.se is not None
        values.append(found.value)
        errors.append(found.se)
        unpaired.append(frechet(reconstructed, real)[1].sqrt().item())
    seen = float(np.std(values, ddof=1))
    assert np.mean(errors) == pytest.approx(seen, rel=0.17)  # 4 standard errors of a deviation from 300 runs
    assert np.mean(unpaired) > 3 * seen


def test_rfd_of_what_cannot_be_compared_is_skipped() -> None:
    real = normal(20, 3, 0)
    broken = real.clone()
    broken[3, 1] = float("nan")
    for found, reason in ((rfd(real, broken), "not finite"), (rfd(real[:1], real[:1]), "at least 2")):
        assert isinstance(found, Skipped)
        assert reason in found.reason


def test_metrics_that_do_not_apply_say_why() -> None:
    features, small = Features("nets", lambda x: x), observed(normal(5, 2, 0), normal(5, 2, 1))
    results = measure_reconstruction(small, features, Skipped("no weights"))
    assert results["ms_ssim"] == Skipped("five scales need images of at least 176x176 pixels")
    assert results["lpips"] == Skipped("no weights")
