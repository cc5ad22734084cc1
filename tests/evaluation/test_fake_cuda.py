"""The pure functions on a device "cuda" that is not there: a tensor on the CPU, or a host sync, raises."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import vaezoo
from vaezoo import testing
from vaezoo.clustering import k_means
from vaezoo.data.splits import ResidentSplit
from vaezoo.distributions import DiagonalGaussian, code_counts, perplexity
from vaezoo.evaluation import (
    aggregate,
    annealing,
    frechet,
    information,
    intervention,
    kernel,
    latents,
    likelihood,
    neighbours,
    reconstruction,
    unsupervised,
)
from vaezoo.evaluation.classifiers import Classifier
from vaezoo.evaluation.dinov2 import DINOv2
from vaezoo.evaluation.features import pixel_features
from vaezoo.plots import nearest_images, rank_dimensions


def test_every_pure_function_stays_on_the_device() -> None:
    with FakeTensorMode(), torch.device("cpu"):  # a tensor made without a device is a mistake that shows
        x, y = (torch.rand(6, 3, 32, 32, device="cuda") for _ in range(2))
        a, b = (torch.rand(50, 7, device="cuda") for _ in range(2))
        values = torch.zeros(50, 2, dtype=torch.long, device="cuda")
        codes = torch.zeros(6, 4, 4, dtype=torch.long, device="cuda")
        large = torch.rand(2, 1, 176, 176, device="cuda")
        with torch.device("cuda"):
            classifier, vit = Classifier(28, {"class": 10}), DINOv2(64, 1)
        binned = information.binned_information(a, values, (3, 4))
        untied = information.without_ties(a, b)
        nearby = information.neighbour_information(untied, values, (3, 4))
        outputs = [
            reconstruction.mse(x, y),
            reconstruction.l1(x, y),
            reconstruction.psnr(x, y),
            reconstruction.ssim(x, y),
            reconstruction.ms_ssim(large, large),
            likelihood.dequantize(x),
            likelihood.bits_per_dimension(x.sum((1, 2, 3)), 10),
            likelihood.effective_samples(a),
            likelihood.bound_curve(a, [1, 5, 50]),
            annealing.log_mean_exp(a),
            pixel_features((3, 32, 32)).extract(x),
            classifier.features(x),
            vit.features(x),
            *frechet.moments(a),
            frechet.frechet_distance(*frechet.moments(a), *frechet.moments(b)),
            *frechet.frechet(a, b),
            *frechet.frechet(a, b, paired=True),
            frechet.frechet_infinity(a, b, a.sum(), torch.Generator()),
            *kernel.kernel_distance(a, b),
            *kernel.vendi_score(a),
            *neighbours.neighbourhoods(a, b),
            neighbours.neighbourhood_variances(a, b, torch.Generator()),
            *neighbours.nearest(a, b),
            k_means(a, 3, torch.Generator()),
            latents.active_units(a),
            latents.resampled_active_units(a),
            *latents.variance_of_means(a),
            perplexity(code_counts(codes, 16)),
            information.discretize(a),
            information.active_by_range(a),
            binned.matrix,
            binned.matrix_error,
            information.mutual_information_gap(binned.matrix, binned.entropies),
            information.modularity(binned.matrix),
            *nearby.bootstrap(information.info_modularity, b.T.double()),
            *nearby.bootstrap(information.info_compactness, b.T.double()),
            intervention.factor_vae_score(a, values[:, 0], b, values[:, 1], a.var(0), 2),
            intervention.interventional_robustness(a, values, 4),
            unsupervised.gaussian_total_correlation(a.T @ a),
            unsupervised.gaussian_wasserstein_correlation_norm(a.T @ a),
            unsupervised.pairwise_information(a),
            latents.surprise(codes.flatten(1), code_counts(codes, 16)),
            latents.codes_of_one_image(codes.flatten(1), 16),
            *aggregate.aggregate_log_probs(DiagonalGaussian(a, b), a),
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
            outputs.append(model.log_weights(x, 3))
            outputs += [model.rate(q, q.sample()), latents.active_units(q.mean)]
        if model.latent.codes is not None:
            z = q.draw()
            levels = z if isinstance(z, tuple) else (z,)
            outputs += [perplexity(code_counts(level, model.latent.codes)) for level in levels]
            outputs.append(model.log_prob(x))
        outputs.append(rank_dimensions(model, x).order)
        found = nearest_images(generated, ResidentSplit((255 * x).byte()), 3)
        outputs += [found.images, found.indices, found.distances]
    assert {output.device.type for output in outputs} == {"cuda"}
