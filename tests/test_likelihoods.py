"""Every likelihood is summed over the image and normalised (trap 3: means over pixels beside a summed KL)."""

import math

import pytest
import torch
from scipy import stats

from vaezoo.likelihoods import LIKELIHOODS

NAMES = LIKELIHOODS.names()


def make(name, channels=1, size=4, scale=0.3, value=0.4):
    likelihood = LIKELIHOODS.get(name)(scale).double()
    parameters = torch.full(
        (1, channels * likelihood.parameters_per_channel, size, size), value, dtype=torch.float64
    )
    return likelihood, likelihood(parameters)


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_a_sum_over_pixels_and_channels(name):
    """Four times the pixels, or three times the channels, of the same value: as many times the nats."""
    small, wide, deep = (make(name, c, s)[1] for c, s in ((1, 4), (1, 8), (3, 4)))
    x = 0.6
    one = small.log_prob(torch.full((1, 1, 4, 4), x).double())
    assert one.shape == (1,)
    torch.testing.assert_close(wide.log_prob(torch.full((1, 1, 8, 8), x).double()), 4 * one)
    torch.testing.assert_close(deep.log_prob(torch.full((1, 3, 4, 4), x).double()), 3 * one)


def test_bernoulli_against_its_formula():
    _, p = make("bernoulli", size=1)
    probability = 1 / (1 + math.exp(-0.4))
    for x in (0.0, 1.0, 0.3):
        expected = x * math.log(probability) + (1 - x) * math.log(1 - probability)
        assert p.log_prob(torch.tensor([[[[x]]]], dtype=torch.float64)).item() == pytest.approx(
            expected, abs=1e-12
        )


@pytest.mark.parametrize(("name", "reference"), [("gaussian", stats.norm), ("laplace", stats.laplace)])
def test_fixed_scales_against_scipy(name, reference):
    _, p = make(name, size=1)
    x = torch.tensor([[[[0.9]]]], dtype=torch.float64)
    assert p.log_prob(x).item() == pytest.approx(reference(0.4, 0.3).logpdf(0.9), abs=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("bernoulli", "logistic_mixture")])
@pytest.mark.parametrize("value", [-3.0, 0.001, 0.4, 3.0])
def test_densities_integrate_to_one(name, value):
    _, p = make(name, size=1, scale=0.3, value=value)
    bounded = name == "continuous_bernoulli"
    if name == "gaussian_pixelwise":
        value = min(value, 0.4)
        _, p = make(name, size=1, value=value)
    low, high = (0.0, 1.0) if bounded else (-40.0, 40.0)
    n = 400_000
    width = (high - low) / n
    x = (low + width * (torch.arange(n).double() + 0.5)).view(-1, 1, 1, 1)
    assert (p.log_prob(x).exp().sum() * width).item() == pytest.approx(1.0, abs=1e-4)


def test_bernoulli_and_levels_sum_to_one():
    _, p = make("bernoulli", size=1)
    both = torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1)
    assert p.log_prob(both).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    _, p = make("logistic_mixture", size=1)
    levels = (torch.arange(256).double() / 255).view(-1, 1, 1, 1)
    assert p.log_prob(levels).exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_learned_scale_finds_the_residual():
    """At its optimum the learned variance is the mean squared error (Rybkin et al. 2021, eq. 6)."""
    likelihood = LIKELIHOODS.get("gaussian_learned")(0.5).double()
    noise = torch.Generator().manual_seed(0)
    x, mean = torch.rand(2, 8, 1, 5, 5, generator=noise).double()
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = -likelihood(mean).log_prob(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = likelihood(mean).base_dist.scale.square().mean().item()
    assert found == pytest.approx((x - mean).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_low_precision_parameters_are_scored_in_float32(name):
    """Under autocast the decoder gives bfloat16; the sum over pixels must not be in it."""
    likelihood = LIKELIHOODS.get(name)(0.1)
    parameters = torch.zeros(2, likelihood.parameters_per_channel, 8, 8, dtype=torch.bfloat16)
    assert likelihood(parameters).log_prob(torch.rand(2, 1, 8, 8)).dtype == torch.float32
