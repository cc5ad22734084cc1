"""The pure functions on a device "cuda" that is not there: a tensor on the CPU, or a host sync, raises."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import vaezoo
from vaezoo import testing
from vaezoo.distributions import code_counts, perplexity
from vaezoo.evaluation import (
    disentanglement,
    frechet,
    kernel,
    latents,
    likelihood,
    memorisation,
    neighbours,
    reconstruction,
)
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
            *frechet.moments(a),
            frechet.frechet_distance(*frechet.moments(a), *frechet.moments(b)),
            *frechet.frechet(a, b),
            frechet.frechet_infinity(a, b, a.sum(), torch.Generator()),
            *kernel.kernel_distance(a, b),
            *kernel.vendi_score(a),
            *neighbours.neighbourhoods(a, b),
            neighbours.neighbourhood_variances(a, b, torch.Generator()),
            *neighbours.nearest(a, b),
            memorisation.cell_centres(a, 3, torch.Generator()),
            latents.active_units(a),
            perplexity(code_counts(codes, 16)),
            disentanglement.discretize(a),
            disentanglement.mutual_information_gap(a, values, (3, 4)),
            disentanglement.modularity(disentanglement.information_matrix(a, values, (3, 4))),
            disentanglement.factor_vae_score(a, values[:, 0], b, values[:, 1], a.var(0), 2),
        ]
    assert {output.device.type for output in outputs} == {"cuda"}


@pytest.mark.parametrize("name", vaezoo.list_models())
def test_metrics_of_every_model_stay_on_the_device(name: str) -> None:
    """What `evaluate` computes from a model's images, reconstructions, samples and latents."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = vaezoo.create(name).eval()
        if model.prior is None:
            testing.attach_prior(model)
        x = torch.rand(6, 1, 28, 28, device="cuda")
        with torch.no_grad():
            q = model.encode(x)
        reconstruction_, generated = model.reconstruct(x), model.sample(6)
        features = pixel_features((1, 28, 28))
        fakes, reals = features.extract(generated), features.extract(x)
        outputs = [
            reconstruction.mse(x, reconstruction_),
            reconstruction.psnr(x, reconstruction_),
            reconstruction.ssim(x, reconstruction_),
            model.distortion(x, q.sample()),
            frechet.frechet_distance(*frechet.moments(fakes), *frechet.moments(reals)),
            *neighbours.neighbourhoods(reals, fakes),
        ]
        if not q.deterministic:
            outputs += [model.rate(q, q.sample()), latents.active_units(q.mean)]
        if model.latent.codes is not None:
            z = q.draw()
            levels = z if isinstance(z, tuple) else (z,)
            outputs += [perplexity(code_counts(level, model.latent.codes)) for level in levels]
            outputs.append(model.log_prob(x))
    assert {output.device.type for output in outputs} == {"cuda"}
