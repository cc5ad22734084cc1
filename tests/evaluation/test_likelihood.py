from __future__ import annotations

import math

import pytest
import torch
from conftest import Linear, make_linear
from torch.distributions import Bernoulli, ContinuousBernoulli, Independent, Laplace, Normal

from vaezoo.autoencoder import Autoencoder
from vaezoo.distributions import DiscretizedLogisticMixture
from vaezoo.evaluation.likelihood import bits_per_dimension, dequantize, measure_likelihood
from vaezoo.evaluation.observe import Observed, measure, observe
from vaezoo.evaluation.report import Metric, Results, Skipped


def seed(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def measured(linear: Linear, samples: int) -> Results:
    batches = linear.images.split(64)
    observed = observe(linear.model, iter(batches), seed(1))
    return measure_likelihood(linear.model, observed, iter(batches), samples, seed(2))


def value(results: Results, name: str) -> Metric:
    metric = results[name]
    assert isinstance(metric, Metric), metric
    return metric


def test_with_the_exact_posterior_the_bound_is_the_log_likelihood_at_k_1(linear: Linear) -> None:
    exact = linear.log_likelihood()
    bound = linear.model.log_prob(linear.images, samples=1)
    torch.testing.assert_close(bound, exact, atol=1e-8, rtol=0)  # no variance either
    assert value(measured(linear, 1), "log_likelihood").value == pytest.approx(exact.mean().item(), abs=1e-8)


def test_the_elbo_with_the_exact_posterior_is_the_log_likelihood(linear: Linear) -> None:
    results = measured(linear, 1)
    exact = linear.log_likelihood().mean().item()
    elbo, bound = value(results, "elbo"), value(results, "log_likelihood")
    assert elbo.value == pytest.approx(
        -value(results, "distortion").value - value(results, "rate").value, abs=1e-9
    )
    # The rate is in closed form and the distortion at one draw, so an image's ELBO varies around log p(x).
    # E_q[-log p(x|z)] is known: with W'W diagonal, that at the mean of q plus tr(W'W S) / (2 s2).
    model, x = linear.model, linear.images
    q = model.encode(x)
    weight = model.decoder[0].weight
    expected = -model.decode(q.mean).log_prob(x) + (q.variance * weight.square().sum(0)).sum(1) / (
        2 * linear.noise
    )
    torch.testing.assert_close(-expected - model.rate(q, q.mean), linear.log_likelihood(), atol=1e-8, rtol=0)
    assert bound.value == pytest.approx(exact, abs=1e-8)
    assert elbo.se is not None
    noise = (-model.distortion(x, q.sample(generator=seed(3))) + expected).std().item() / math.sqrt(len(x))
    assert abs(elbo.value - exact) < 4 * noise


def test_with_a_bad_proposal_the_bound_rises_to_the_log_likelihood(linear: Linear) -> None:
    linear.images = linear.images[:150]
    with torch.no_grad():
        linear.model.encoder[1].bias[3:] += 1.0  # variances e times too large
        linear.model.encoder[1].bias[:3] += 0.1
    exact = linear.log_likelihood()
    gaps = []
    for k in (1, 5, 50, 500):
        gap = exact - linear.model.log_prob(linear.images, k, seed(4))
        gaps.append((gap.mean().item(), gap.std().item() / math.sqrt(len(gap))))
    means = [mean for mean, _ in gaps]
    assert means == sorted(means, reverse=True)
    assert means[0] > 1
    assert abs(means[-1]) < max(0.005, 3 * gaps[-1][1])


def test_the_result_does_not_depend_on_how_images_are_batched(linear: Linear) -> None:
    even = observe(linear.model, iter(linear.images.split(100)))
    odd = observe(linear.model, iter(linear.images.split(150)))  # the last batch is smaller
    for name in ("mse", "psnr", "ssim", "rate"):
        torch.testing.assert_close(even.per_image[name], odd.per_image[name])
        assert len(odd.per_image[name]) == len(linear.images)


def test_dequantised_levels_fill_the_unit_interval_each_in_its_own_256th() -> None:
    levels = torch.arange(256).repeat(50)
    x = dequantize(levels.float() / 255, seed(0))
    assert torch.equal((x * 256).floor().clamp_max(255).long(), levels)
    assert x.min() >= 0
    assert x.max() <= 1


def test_a_uniform_density_costs_eight_bits_for_each_dimension() -> None:
    assert bits_per_dimension(torch.zeros(1), 784).item() + 8 == 8
    assert bits_per_dimension(torch.tensor([-784 * math.log(256)]), 784).item() == pytest.approx(8)


def test_what_a_likelihood_measures_is_told_from_its_distribution() -> None:
    zeros = torch.zeros(2, 1, 4, 4)
    assert measure(Independent(Bernoulli(logits=zeros), 3)) == "binary"
    for density in (ContinuousBernoulli(logits=zeros), Normal(zeros, 1.0), Laplace(zeros, 1.0)):
        assert measure(Independent(density, 3)) == "density"
    levels = DiscretizedLogisticMixture(zeros[:, None], zeros[:, None], zeros[:, None])
    assert measure(Independent(levels, 3, validate_args=False)) == "levels"


def observed(model: Autoencoder, x: torch.Tensor) -> Observed:
    return observe(model, iter([x]), seed(0))


@pytest.mark.parametrize(
    ("likelihood", "images", "reason"),
    [
        ("bernoulli", "grey", "not normalised"),
        ("bernoulli", "binary", None),
        ("gaussian", "grey", None),
        ("gaussian", "real", "8-bit"),
        ("logistic_mixture", "grey", None),
    ],
)
def test_bits_per_dimension_only_where_they_mean_something(
    likelihood: str, images: str, reason: str | None
) -> None:
    import vaezoo

    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=2, likelihood=likelihood)
    grey = torch.randint(256, (16, 1, 8, 8), generator=seed(0)).float() / 255
    x = {"grey": grey, "binary": (grey > 0.5).float(), "real": grey * 0.987}[images]
    bits = measure_likelihood(model, observed(model, x), iter([x]), 4, seed(0))["bits_per_dim"]
    if reason is None:
        assert isinstance(bits, Metric)
        # Untrained, every one of these is within a few bits of ignorance: 1 for binary pixels, 8 for levels.
        assert bits.value > (0.5 if images == "binary" else 4)
    else:
        assert isinstance(bits, Skipped)
        assert reason in bits.reason


def test_a_constant_density_on_grey_levels_has_the_bits_of_its_width() -> None:
    """x' uniform given x, p(x') = N(1/2, s): E[-log2 p(x')] + 8 by quadrature."""
    import vaezoo

    model = vaezoo.create(
        "vae", image_shape=(1, 8, 8), latent_dim=2, likelihood="gaussian", likelihood_scale=0.3
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        list(model.parameters())[-1].fill_(0.5)
    x = (torch.arange(256).float() / 255).view(4, 1, 8, 8)
    bits = value(measure_likelihood(model, observed(model, x), iter([x] * 60), 1, seed(0)), "bits_per_dim")
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    expected = -Normal(0.5, 0.3).log_prob(grid).mean().item() / math.log(2) + 8
    assert bits.value == pytest.approx(expected, abs=4e-3)


def test_a_point_mass_has_no_rate_and_no_prior_says_how_to_fit_one() -> None:
    import vaezoo
    from vaezoo.priors.gaussian_mixture import GaussianMixture

    model = vaezoo.create("ae", image_shape=(1, 8, 8), latent_dim=2)
    x = torch.rand(8, 1, 8, 8)
    for prior, reason in (
        (None, "fit_prior"),
        (GaussianMixture(GaussianMixture.Config(), model.latent), "point mass"),
    ):
        model.prior = prior
        results = measure_likelihood(model, observed(model, x), iter([x]), 2, seed(0))
        assert isinstance(results["distortion"], Metric)
        for name in ("rate", "elbo", "log_likelihood", "bits_per_dim"):
            skipped = results[name]
            assert isinstance(skipped, Skipped)
            assert reason in skipped.reason


def test_active_units_of_a_linear_vae_are_its_eigenvalues_above_the_noise() -> None:
    """Var_x(E[z_i|x]) = 1 - s2 / lambda_i at the optimum (Lucas et al. 2019)."""
    from vaezoo.evaluation.latents import active_units

    linear = make_linear([1.0, 0.3, 0.1, 0.06], noise=0.04, latents=7, n=20_000)
    means = observed(linear.model, linear.images).means
    assert means is not None
    assert active_units(means).tolist() == (linear.eigenvalues[:7] > linear.noise).tolist()
    expected = 1 - linear.noise / linear.eigenvalues[:7]
    torch.testing.assert_close(means.var(0), expected, atol=0.03, rtol=0)
