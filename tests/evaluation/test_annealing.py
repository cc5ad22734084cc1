"""Oracle 6, and what its validity rests on: an invariant kernel and step sizes that chains do not choose."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Linear, make_linear
from torch import Tensor

import vaezoo
from vaezoo.autoencoder import Autoencoder
from vaezoo.errors import VaezooError
from vaezoo.evaluation import annealing
from vaezoo.evaluation.annealing import anneal, measure_annealing, temperatures, transition, tune
from vaezoo.evaluation.observe import Observed, observe
from vaezoo.evaluation.report import Metric, Skipped
from vaezoo.priors.gaussian_mixture import GaussianMixture


def seed(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def simulate(linear: Linear, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [n, D], images drawn at them, and their exact log-likelihood."""
    z = torch.randn(n, linear.model.config.latent_dim, dtype=torch.float64, generator=seed(0))
    mean = linear.model.decode(z).mean.detach()
    linear.images = mean + linear.noise**0.5 * torch.randn(mean.shape, dtype=mean.dtype, generator=seed(1))
    return z, linear.images, linear.log_likelihood()


def short(monkeypatch: pytest.MonkeyPatch, temperatures: int, leapfrog: int = 3) -> None:
    monkeypatch.setattr(annealing, "TEMPERATURES", temperatures)
    monkeypatch.setattr(annealing, "LEAPFROG", leapfrog)


@torch.no_grad()
def bounds(linear: Linear, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    lower, _, steps = annealing.lower_bound(linear.model, x, seed(2))
    return lower, annealing.upper_bound(linear.model, x, z, steps, seed(3))


def test_forward_and_reverse_sandwich_the_truth(linear: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch, temperatures=1000, leapfrog=2)
    z, x, truth = simulate(linear, 100)
    lower, upper = bounds(linear, z, x)
    assert (upper - lower).mean() < 0.1
    for error in (truth - lower, upper - truth):  # neither is on the wrong side of the truth
        assert error.mean() > -3 * error.std() / math.sqrt(len(x))
        assert error.mean() < 0.1


def test_even_a_loose_bound_is_on_its_side_and_unbiased(
    linear: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E[w] = p(x) up and E[1/w] = 1/p(x) down, at 10 temperatures too; a biased kernel would not give it."""
    short(monkeypatch, temperatures=10)
    monkeypatch.setattr(annealing, "CHAINS", 2000)
    linear = make_linear([0.1, 0.06], noise=0.04)  # weights of a variance that 2000 chains can average
    z, x, truth = simulate(linear, 30)
    lower, upper = bounds(linear, z, x)
    # All chains back start from one draw, so their mean varies from image to image; forward it does not.
    assert (lower - truth).abs().max() < 0.2
    ratio = torch.exp(truth - upper)  # unbiased for 1, whatever the bound
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(x))


def gaussian(scale: float) -> annealing.Density:
    """N(0, I) prior, and a likelihood that makes the posterior N(0, scale^2) at temperature 1."""
    precision = 1 / scale**2 - 1

    def density(z: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * z.square().sum(-1), -0.5 * precision * z.square().sum(-1)

    return density


@pytest.mark.parametrize("step", [0.1, 0.35])
def test_a_trajectory_leaves_the_target_invariant(step: float) -> None:
    """Exact draws of p_b stay draws of p_b, also where a part of the trajectories is rejected."""
    density, b, scale = gaussian(0.2), 0.5, 1 / math.sqrt(1 + 0.5 * 24)
    z = scale * torch.randn(20_000, 1, 2, dtype=torch.float64, generator=seed(0))
    state = annealing.evaluate_at(density, z)
    noise = seed(1)
    for _ in range(3):
        state, probability = transition(density, state, b, torch.tensor([step]).double(), noise)
    assert probability.mean() < (0.999 if step < 0.3 else 0.9)  # or the test shows little
    squares = (state.z / scale).square()
    assert abs(squares.mean().item() - 1) < 4 * math.sqrt(2 / squares.numel())
    fourth = (state.z / scale) ** 4
    assert abs(fourth.mean().item() - 3) < 4 * math.sqrt(96 / squares.numel())
    moved = (state.z - z).abs().sum(-1) > 0
    assert moved.float().mean() > 0.5


def test_the_state_carries_the_density_at_its_point() -> None:
    """Chains that were turned back keep their old values and gradients, and those that moved the new ones."""
    density = gaussian(0.2)
    state = annealing.evaluate_at(density, torch.randn(50, 4, 3, dtype=torch.float64, generator=seed(0)))
    after, _ = transition(density, state, 1.0, torch.full((4,), 0.38, dtype=torch.float64), seed(1))
    fresh = annealing.evaluate_at(density, after.z)
    for carried, computed in zip(after, fresh):
        torch.testing.assert_close(carried, computed, rtol=0, atol=1e-12)


def test_weights_are_the_sum_over_temperatures() -> None:
    """With steps of size 0 chains stay, and the path has to add up to log p(x|z) whichever way it goes."""
    density = gaussian(0.5)
    z = torch.randn(5, 2, 3, dtype=torch.float64, generator=seed(0))
    expected = density(z)[1]
    for path in (temperatures(20), temperatures(20)[::-1]):
        weights, accepted = anneal(density, z, path, torch.zeros(19, 2, dtype=torch.float64), seed(1))
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(accepted, torch.ones(2, dtype=torch.float64))


def test_one_temperature_is_importance_sampling_from_the_prior() -> None:
    density = gaussian(0.5)
    z = torch.randn(5, 2, 3, dtype=torch.float64, generator=seed(0))
    weights, _ = anneal(density, z, temperatures(1), torch.zeros(0, 2).double(), seed(1))
    torch.testing.assert_close(weights, density(z)[1], rtol=0, atol=1e-12)


def test_temperatures_rise_from_0_to_1_closest_at_the_ends() -> None:
    path = torch.tensor(temperatures(100), dtype=torch.float64)
    gaps = path.diff()
    assert path[0] == 0
    assert path[-1] == pytest.approx(1, abs=1e-12)
    assert (gaps > 0).all()
    assert gaps.argmax() in (49, 50)
    torch.testing.assert_close(gaps, gaps.flip(0), rtol=0, atol=1e-12)


def test_the_pilot_finds_a_step_for_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two images one has a posterior ten times as wide: steps follow, and most are accepted."""
    scales = torch.tensor([0.5, 0.05], dtype=torch.float64)

    def density(z: Tensor) -> tuple[Tensor, Tensor]:
        squares = z.square().sum(-1)
        return -0.5 * squares, -0.5 * (1 / scales**2 - 1) * squares

    path = temperatures(400)
    start = torch.randn(20, 2, 3, dtype=torch.float64, generator=seed(0))
    steps = tune(density, start, path, seed(1))
    assert steps.shape == (399, 2)
    ratio = (steps[-1, 0] / steps[-1, 1]).item()
    assert 5 < ratio < 20
    _, accepted = anneal(density, start, path, steps, seed(2))
    assert (accepted > 0.5).all()


def look(model: Autoencoder, x: Tensor) -> Observed:
    return observe(model, iter([x]), seed(0))


def test_the_measurement_is_seeded_and_leaves_the_random_state(
    linear: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, temperatures=20)
    x = linear.images[:12]
    observed = look(linear.model, x)
    torch.manual_seed(5)
    first = measure_annealing(linear.model, observed, iter(x.split(7)), 3)
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(2))
    assert measure_annealing(linear.model, observed, iter(x.split(7)), 3) == first
    assert measure_annealing(linear.model, observed, iter(x.split(7)), 4) != first
    bound, gap = first["ais_log_likelihood"], first["bdmc_gap"]
    assert isinstance(bound, Metric)
    assert isinstance(gap, Metric)
    assert bound.n == gap.n == 12
    assert bound.se is not None
    assert gap.value > 0


def test_the_gap_is_on_images_of_the_model(linear: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from the model's images the bound is loose, and the gap knows nothing of it."""
    short(monkeypatch, temperatures=20)
    near, far = linear.images[:20], linear.images[:20] + 3
    gaps = [
        measure_annealing(linear.model, look(linear.model, x), iter([x]), 3)["bdmc_gap"] for x in (near, far)
    ]
    assert gaps[0] == gaps[1]


def test_an_autoencoder_with_a_prior_has_a_likelihood_without_a_posterior(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rate of its q is infinite, and so is the bound by it. In two dimensions a grid gives the truth."""
    short(monkeypatch, temperatures=100)
    torch.manual_seed(0)
    model = vaezoo.create(
        "ae", image_shape=(1, 3, 3), latent_dim=2, network_options={"hidden": (8,)}
    ).double()
    model.prior = GaussianMixture(GaussianMixture.Config(components=2), model.latent).double()
    model.prior.fit(torch.randn(400, 2, dtype=torch.float64, generator=seed(0)) + torch.tensor([1.0, -1.0]))
    x = (torch.rand(16, 1, 3, 3, generator=seed(1)) < 0.5).double()
    found = measure_annealing(model, look(model, x), iter([x]), 0)["ais_log_likelihood"]
    ticks = torch.linspace(-6, 6, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks + 1, ticks - 1)
    with torch.no_grad():
        log_prior = model.prior.log_prob(grid) + 2 * math.log(12 / 160)
        exact = torch.stack(
            [
                (log_prior - model.distortion(one.expand(len(grid), -1, -1, -1), grid)).logsumexp(0)
                for one in x
            ]
        )
    assert isinstance(found, Metric)
    assert found.value == pytest.approx(exact.mean().item(), abs=0.01)


def test_what_cannot_be_annealed_is_skipped(linear: Linear) -> None:
    codes = vaezoo.create("vq_vae", image_shape=(1, 8, 8), channels=4, residual_channels=2, downsample=2)
    x = torch.rand(4, 1, 8, 8, generator=seed(0))
    unfitted = vaezoo.create("ae", image_shape=(1, 8, 8))
    for model, reason in ((codes, "one real vector"), (unfitted, "fit_prior")):
        results = measure_annealing(model, look(model, x), iter([x]), 0)
        assert results.keys() == set(annealing.NAMES)
        for result in results.values():
            assert isinstance(result, Skipped)
            assert reason in result.reason


def test_numbers_that_are_not_finite_are_no_metrics(linear: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch, temperatures=5)
    with torch.no_grad():
        linear.model.decoder[0].bias.fill_(math.nan)
    x = linear.images[:4]
    for result in measure_annealing(linear.model, look(linear.model, x), iter([x]), 0).values():
        assert isinstance(result, Skipped)
        assert "not finite" in result.reason


def test_evaluate_measures_it_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch, temperatures=5)
    torch.manual_seed(0)
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3)
    options = {"n": 30, "samples": 2, "likelihood_n": 10, "axes": ["likelihood"]}
    plain, asked = (vaezoo.evaluate(model, "digits", **options, annealing=n) for n in (0, 6))
    assert "likelihood/bdmc_gap" not in plain
    assert asked["likelihood/ais_log_likelihood"].n == asked["likelihood/bdmc_gap"].n == 6
    assert "cross-entropy" in asked["likelihood/ais_log_likelihood"].note  # grey levels under a Bernoulli
    assert asked.header["annealing"] == 6
    with pytest.raises(VaezooError, match="annealing=-1"):
        vaezoo.evaluate(model, "digits", **options, annealing=-1)


@pytest.mark.cuda
def test_on_a_gpu(linear: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch, temperatures=200)
    z, x, truth = simulate(linear, 50)
    linear.model.cuda()
    lower, _, steps = annealing.lower_bound(linear.model, x.cuda(), torch.Generator("cuda").manual_seed(0))
    upper = annealing.upper_bound(
        linear.model, x.cuda(), z.cuda(), steps, torch.Generator("cuda").manual_seed(1)
    )
    assert abs(lower.cpu() - truth).mean() < 0.5
    assert abs(upper.cpu() - truth).mean() < 0.5
