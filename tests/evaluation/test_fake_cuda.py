"""The pure functions on a device "cuda" that is not there: a tensor on the CPU, or a host sync, raises."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vaezoo.distributions import code_counts, perplexity
from vaezoo.evaluation import disentanglement, latents, likelihood, reconstruction, sampling
from vaezoo.evaluation.features import pixel_features


def test_every_pure_function_stays_on_the_device() -> None:
    with FakeTensorMode(), torch.device("cpu"):  # a tensor made without a device is a mistake that shows
        x, y = (torch.rand(6, 3, 32, 32, device="cuda") for _ in range(2))
        a, b = (torch.rand(50, 7, device="cuda") for _ in range(2))
        values = torch.zeros(50, 2, dtype=torch.long, device="cuda")
        codes = torch.zeros(6, 4, 4, dtype=torch.long, device="cuda")
        outputs = [
            reconstruction.mse(x, y),
            reconstruction.psnr(x, y),
            reconstruction.ssim(x, y),
            likelihood.dequantize(x),
            likelihood.bits_per_dimension(x.sum((1, 2, 3)), 10),
            pixel_features((3, 32, 32)).extract(x),
            *sampling.moments(a),
            sampling.frechet_distance(*sampling.moments(a), *sampling.moments(b)),
            sampling.frechet_variance(a, b),
            *sampling.precision_recall(a, b),
            *sampling.density_coverage(a, b),
            latents.active_units(a),
            perplexity(code_counts(codes, 16)),
            disentanglement.discretize(a),
            disentanglement.mutual_information_gap(a, values, (3, 4)),
            disentanglement.modularity(disentanglement.information_matrix(a, values, (3, 4))),
            disentanglement.factor_vae_score(a, values[:, 0], b, values[:, 1], a.var(0), 2),
        ]
    assert {output.device.type for output in outputs} == {"cuda"}
