from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vaezoo.evaluation.reconstruction import mse, psnr, ssim, ssim_window


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
