from __future__ import annotations

import math

import pytest
import torch
from conftest import Linear, make_linear
from torch.distributions import Bernoulli, ContinuousBernoulli, Distribution, Independent, Laplace, Normal

import vaezoo
from vaezoo import autoencoder
from vaezoo.autoencoder import Autoencoder, Latent, LatentShape, Prior
from vaezoo.config import BaseConfig
from vaezoo.distributions import DiscretizedLogisticMixture
from vaezoo.errors import VaezooError
from vaezoo.evaluation.likelihood import (
    bits_per_dimension,
    bound_curve,
    curve_sizes,
    dequantize,
    effective_samples,
    measure_likelihood,
)
from vaezoo.evaluation.observe import Observed, measure, observe
from vaezoo.evaluation.report import Detail, Metric, Results, Skipped


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
    for k in (1, 5, 50, 500, 5000):
        gap = exact - linear.model.log_prob(linear.images, k, seed(4))
        gaps.append((gap.mean().item(), gap.std().item() / math.sqrt(len(gap))))
    means = [mean for mean, _ in gaps]
    assert means == sorted(means, reverse=True)
    assert means[0] > 1
    assert abs(means[-1]) < 3 * gaps[-1][1]


def test_the_bound_is_the_same_whatever_is_decoded_at_a_time(
    linear: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of one image or of many, and of draws that they do not divide."""
    linear.model.encoder[1].bias.data[3:] += 1.0
    x, pixels = linear.images[:7], 16
    expected = linear.model.log_prob(x, 50, seed(0))
    decoded = []
    decode = linear.model.decode

    def spy(z: torch.Tensor) -> Distribution:
        decoded.append(len(z))
        return decode(z)

    monkeypatch.setattr(linear.model, "decode", spy)
    for rows in (1, 3, 7, 49, 50, 51, 120, 10_000):
        decoded.clear()
        monkeypatch.setattr(autoencoder, "DECODED_PIXELS_CPU", rows * pixels)
        bound = linear.model.log_prob(x, 50, seed(0))
        torch.testing.assert_close(bound, expected, rtol=0, atol=1e-10)
        assert sum(decoded) == 50 * len(x)
        assert max(decoded) <= rows  # the memory's bound


def test_draws_in_several_blocks_are_as_good(linear: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    linear.model.encoder[1].bias.data[3:] += 1.0
    x = linear.images[:20]
    monkeypatch.setattr(autoencoder, "DRAWN_NUMBERS", 3 * len(x) * 7)  # 50 = 7 * 7 + 1
    weights = linear.model.log_weights(x, 50, seed(0)).detach()
    assert weights.shape == (50, 20)
    assert len(weights.unique()) == weights.numel()
    bound = linear.model.log_prob(x, 50, seed(0))
    torch.testing.assert_close(bound, weights.logsumexp(0) - math.log(50), rtol=0, atol=1e-12)


def test_the_gradient_of_the_bound_weighs_each_sample_by_its_normalised_weight(linear: Linear) -> None:
    """Burda et al. 2016, eq. 14 (trap 4: a softmax over losses, where the worst samples win)."""
    linear.model.encoder[1].bias.data[3:] += 1.0
    model, x, k = linear.model, linear.images[:5], 6
    parameters = list(model.parameters())
    bound = model.log_weights(x, k, seed(1)).logsumexp(0) - math.log(k)
    found = torch.autograd.grad(bound.sum(), parameters)
    noise = torch.randn(k, *x.shape[:1], 3, dtype=x.dtype, generator=seed(1))
    expected = [torch.zeros_like(p) for p in parameters]
    for n, image in enumerate(x.split(1)):
        log_weights, gradients = [], []
        for i in range(k):
            mean, log_variance = model.features(image).chunk(2, -1)
            q = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
            z = mean + (0.5 * log_variance).exp() * noise[i, n]
            prior = Independent(Normal(torch.zeros_like(z), torch.ones_like(z)), 1)
            log_weight = model.decode(z).log_prob(image) + prior.log_prob(z) - q.log_prob(z)
            log_weights.append(log_weight.detach())
            gradients.append(torch.autograd.grad(log_weight.sum(), parameters))
        normalised = torch.cat(log_weights).softmax(0)
        for weight, gradient in zip(normalised, gradients):
            expected = [total + weight * part for total, part in zip(expected, gradient)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_the_bound_in_float32_is_that_in_float64() -> None:
    """Within 1e-3 nats of sums over 784 pixels, with logits as far from 0 as those of trained models."""
    torch.manual_seed(0)
    model = vaezoo.create("vae", network_options={"hidden": (32,)})
    with torch.no_grad():
        list(model.parameters())[-2].mul_(40)
    z = torch.randn(200, 20, generator=seed(1))
    x = (model.decode(z[:4]).mean > 0.5).float()
    single = [model.decode(z).log_prob(one) + model.require_prior().log_prob(z) for one in x]
    model, x, z = model.double(), x.double(), z.double()
    assert model.decode(z).base_dist.logits.std() > 3  # type: ignore[attr-defined]
    for one, found in zip(x, single):
        exact = model.decode(z).log_prob(one) + model.require_prior().log_prob(z)
        assert (found.double() - exact).abs().max() < 1e-3


def test_effective_samples_of_known_weights() -> None:
    k = 40
    equal = torch.full((k,), -300.0, dtype=torch.float64)
    one = equal.clone()
    one[3] += 200
    half = equal.clone()
    half[: k // 2] -= 500
    ess = effective_samples(torch.stack([equal, one, half], 1))
    torch.testing.assert_close(ess, torch.tensor([k, 1, k / 2], dtype=torch.float64))
    weights = torch.rand(k, 3, dtype=torch.float64, generator=seed(0))
    expected = weights.sum(0).square() / weights.square().sum(0)
    torch.testing.assert_close(effective_samples(weights.log()), expected, rtol=1e-12, atol=0)


def test_effective_samples_of_a_gaussian_too_wide_are_known(linear: Linear) -> None:
    """With variances r times too large, w = N(z; 0, 1) / N(z; 0, r): ESS / k -> prod (2 r - 1)^1/2 / r."""
    exact = value(measured(linear, 500), "effective_samples")
    assert exact.value == pytest.approx(500, abs=1e-6)
    r = 1.5
    linear.model.encoder[1].bias.data[3:] += math.log(r)
    wide = value(measured(linear, 5000), "effective_samples")
    assert wide.n == len(linear.images)
    assert wide.se is not None
    assert wide.value / 5000 == pytest.approx((math.sqrt(2 * r - 1) / r) ** 3, abs=4 * wide.se / 5000 + 1e-3)
    assert "of k=5000" in wide.note


def test_bounds_at_small_k_use_all_draws_in_disjoint_groups() -> None:
    log_weights = torch.randn(23, 4, dtype=torch.float64, generator=seed(0))
    assert curve_sizes(23) == [1, 5, 23]
    assert curve_sizes(1) == [1]
    assert curve_sizes(5000) == [1, 5, 50, 500, 5000]
    curve = bound_curve(log_weights, [1, 5, 23])
    torch.testing.assert_close(curve[0], log_weights.mean(0))
    groups = [log_weights[i : i + 5].exp().mean(0).log() for i in (0, 5, 10, 15)]
    torch.testing.assert_close(curve[1], torch.stack(groups).mean(0))
    torch.testing.assert_close(curve[2], log_weights.exp().mean(0).log())


def test_the_k_curve_rises_to_the_reported_bound(linear: Linear) -> None:
    linear.model.encoder[1].bias.data[3:] += 1.0
    results = measured(linear, 600)
    curve = results["k_curve"]
    assert isinstance(curve, Detail)
    assert curve.labels == (("1", "5", "50", "500", "600"),)
    bound = value(results, "log_likelihood")
    assert curve.values[-1] == bound.value
    assert isinstance(curve.se, list)
    assert curve.se[-1] == pytest.approx(bound.se)
    assert curve.values[:3] == sorted(curve.values[:3])
    # E[log w] = log p(x) - KL(q || posterior): (e - 2) / 2 for a dimension of e times the variance.
    gap = linear.log_likelihood().mean().item() - curve.values[0]
    draws = linear.model.log_weights(linear.images, 600, seed(9)).detach() - linear.log_likelihood()
    error = draws.std().item() / math.sqrt(draws.numel())
    assert gap == pytest.approx(3 * (math.e - 2) / 2, abs=4 * error)


class Frequencies(Prior):
    """Codes drawn independently with known probabilities."""

    def __init__(self, probabilities: list[float], latent: LatentShape) -> None:
        super().__init__(BaseConfig(), latent)
        self.register_buffer("log_probabilities", torch.tensor(probabilities).log())

    def log_prob(self, z: Latent) -> torch.Tensor:
        assert isinstance(z, torch.Tensor)
        return self.log_probabilities[z.long()].flatten(1).sum(1)


def test_code_length_is_what_an_ideal_code_needs() -> None:
    """A uniform prior: positions * log2 K, and nothing saved; known frequencies: -sum log2 p of the codes."""
    torch.manual_seed(0)
    model = vaezoo.create("vq_vae", image_shape=(1, 8, 8), codes=4, channels=4, residual_channels=2)
    x = torch.rand(30, 1, 8, 8, generator=seed(0))
    model.initialize(x)
    model.prior = Frequencies([0.25] * 4, model.latent)
    results = measure_likelihood(model, observed(model, x), iter([x]), 5, seed(0))
    positions = 2 * 2
    assert value(results, "code_length").value == pytest.approx(positions * 2, abs=1e-5)
    assert value(results, "bits_per_code").value == pytest.approx(2, abs=1e-6)
    assert value(results, "code_saving").value == pytest.approx(0, abs=1e-6)

    probabilities = [0.5, 0.25, 0.125, 0.125]
    model.prior = Frequencies(probabilities, model.latent)
    seen = observed(model, x)
    results = measure_likelihood(model, seen, iter([x]), 5, seed(0))
    assert seen.codes is not None
    lengths = torch.tensor([1.0, 2, 3, 3])[seen.codes[0].long()].sum(1)
    assert len(lengths.unique()) > 1  # or the test shows little
    length = value(results, "code_length")
    assert length.value == pytest.approx(lengths.mean().item(), abs=1e-5)
    assert length.se == pytest.approx(lengths.std().item() / math.sqrt(30), abs=1e-5)
    assert value(results, "code_saving").value == pytest.approx(1 - lengths.mean().item() / 8, abs=1e-6)
    # Codes and image together are the two parts of the message: -log p(x|z) - log p(z).
    total = -value(results, "log_likelihood").value
    parts = value(results, "distortion").value + length.value * math.log(2)
    assert total == pytest.approx(parts, rel=1e-6)
    assert isinstance(results["effective_samples"], Skipped)
    assert "k_curve" not in results


def tiny(likelihood: str, codes: int = 4) -> tuple[Autoencoder, torch.Tensor]:
    """A VQ-VAE of 2x2 codes on images of 4x4, and grey or binary images for it."""
    torch.manual_seed(1)
    options = {
        "channels": 4,
        "residual_channels": 2,
        "code_dim": 3,
        "downsample": 2,
        "likelihood": likelihood,
    }
    model = vaezoo.create("vq_vae", image_shape=(1, 4, 4), codes=codes, **options).eval()
    for parameter in model.parameters():  # away from the start, where all codes decode to about the same
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randint(256, (400, 1, 4, 4), generator=seed(0)).float() / 255
    x = (x > 0.5).float() if likelihood == "bernoulli" else x
    with torch.no_grad():
        model.initialize(x)
    return model, x


def test_two_part_code_of_a_discretised_likelihood_by_hand() -> None:
    """Nearest codes, then every pixel's probability among all 256 levels, written out in float64; the codes
    cost what a prior of known frequencies says, or log2 4 each."""
    model, x = tiny("logistic_mixture")
    x = x[:40]
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125])
    model.prior = Frequencies(probabilities.tolist(), model.latent)
    results = measure_likelihood(model, observed(model, x), iter([x]), 5, seed(0))
    with torch.no_grad():
        vectors = model.codebook(0).vectors
        features = model.encoder(x).permute(0, 2, 3, 1)
        nearest = (features.unsqueeze(-2) - vectors).square().sum(-1).argmin(-1)
        parameters = model.decoder(vectors[nearest].permute(0, 3, 1, 2)).double()
    assert len(nearest.unique()) == 4
    logits, loc, log_scale = parameters.view(40, 3, 5, 4, 4).unbind(1)
    loc = loc + torch.linspace(0, 1, 7, dtype=torch.float64)[1:-1].view(5, 1, 1)
    edges = (torch.arange(255).double() + 0.5) / 255
    below = torch.sigmoid((edges - loc.unsqueeze(-1)) / (log_scale - 2).clamp(-7, 7).exp().unsqueeze(-1))
    below = (logits.softmax(1).unsqueeze(-1) * below).sum(1)  # P(level <= k), of each pixel [40, 4, 4, 255]
    levels = torch.diff(
        below, prepend=torch.zeros(40, 4, 4, 1).double(), append=torch.ones(40, 4, 4, 1).double()
    )
    torch.testing.assert_close(levels.sum(-1), torch.ones(40, 4, 4).double())
    pixel = levels.gather(-1, (255 * x).round().long().view(40, 4, 4, 1)).squeeze(-1)
    pixels = -pixel.log2().flatten(1).sum(1)
    codes = -probabilities.double()[nearest].log2().flatten(1).sum(1)
    for name, bits in (("bits_per_dim", (pixels + codes) / 16), ("bits_per_dim_uniform", (pixels + 8) / 16)):
        found = value(results, name)
        assert found.value == pytest.approx(bits.mean().item(), abs=1e-5)
        assert found.se == pytest.approx(bits.std().item() / math.sqrt(40), rel=1e-4)
    assert "with 8 bits for the codes of each image" in value(results, "bits_per_dim_uniform").note


@pytest.mark.parametrize("likelihood", ["logistic_mixture", "gaussian", "gaussian_pixelwise", "bernoulli"])
def test_what_the_prior_saves_is_the_difference_to_uniform_codes_of_the_same_images(likelihood: str) -> None:
    """For a density these are the dequantised images, whose codes are others."""
    model, x = tiny(likelihood)
    probabilities = [0.5, 0.25, 0.125, 0.125]
    model.prior = Frequencies(probabilities, model.latent)
    results = measure_likelihood(model, observed(model, x), iter(x.split(150)), 5, seed(0))
    noise, lengths, differ = seed(0), [], False
    for part in x.split(150):
        measured = dequantize(part, noise) if likelihood.startswith("gaussian") else part
        with torch.no_grad():
            codes, plain = model.latents(measured), model.latents(part)
        differ |= not torch.equal(codes, plain)
        lengths.append(torch.tensor([1.0, 2, 3, 3])[codes].flatten(1).sum(1))
    assert differ == likelihood.startswith("gaussian"), "or the test shows little"
    saved = (4 * 2 - torch.cat(lengths).mean().item()) / 16
    assert abs(saved) > 1e-3
    found = value(results, "bits_per_dim_uniform").value - value(results, "bits_per_dim").value
    assert found == pytest.approx(saved, abs=1e-6)


@pytest.mark.parametrize("likelihood", ["logistic_mixture", "gaussian", "bernoulli"])
def test_a_prior_that_knows_nothing_saves_nothing(likelihood: str) -> None:
    """Logits that are all zero: p(codes) is uniform."""
    from vaezoo.priors import PRIORS

    model, x = tiny(likelihood, codes=5)
    prior = PRIORS.get("transformer")
    model.prior = prior(prior.Config(width=8, depth=1, heads=1), model.latent).eval()
    for parameter in model.prior.parameters():
        torch.nn.init.zeros_(parameter)
    results = measure_likelihood(model, observed(model, x), iter([x]), 5, seed(0))
    bits, uniform = value(results, "bits_per_dim"), value(results, "bits_per_dim_uniform")
    assert uniform.value == pytest.approx(bits.value, abs=1e-6)
    assert uniform.n == bits.n


def test_uniform_codes_have_no_bits_where_the_image_has_none() -> None:
    model, x = tiny("bernoulli")
    model.prior = Frequencies([0.25] * 4, model.latent)
    x = x * 0.5
    results = measure_likelihood(model, observed(model, x), iter([x]), 1, seed(0))
    assert isinstance(results["bits_per_dim"], Skipped)
    assert results["bits_per_dim_uniform"] == results["bits_per_dim"]


def test_real_latents_have_no_code_length(linear: Linear) -> None:
    results = measured(linear, 1)
    for name in ("code_length", "bits_per_code", "code_saving", "bits_per_dim_uniform"):
        assert results[name] == Skipped("the latents are real numbers, not codes")


@pytest.mark.parametrize("samples", [0, -3])
def test_no_samples_are_refused(linear: Linear, samples: int) -> None:
    with pytest.raises(VaezooError, match=f"samples={samples}"):
        linear.model.log_prob(linear.images, samples)


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
        for name in ("rate", "elbo", "log_likelihood", "effective_samples", "bits_per_dim", "code_length"):
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
