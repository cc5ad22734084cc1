from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import vaezoo
from vaezoo.distributions import code_counts, perplexity
from vaezoo.evaluation.latents import (
    RESAMPLES,
    active_units,
    codes_of_one_image,
    measure_latents,
    resampled_active_units,
    surprise,
    variance_of_means,
)
from vaezoo.evaluation.observe import Observed, observe
from vaezoo.evaluation.report import Detail, Metric, Result, Results, Skipped

VECTOR_NAMES = {"active_units", "variance_of_means", "kl_per_dimension"}
CODE_NAMES = {"perplexity", "usage", "dead_codes", "code_usage"}


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measured(**fields: Any) -> Results:
    """Of what a pass over the images left."""
    missing = {"means": None, "log_variances": None, "codes": None, "codebook": None, "deterministic": False}
    return measure_latents(cast(Observed, SimpleNamespace(**{**missing, **fields})), noise(0))


def metric(result: Result) -> Metric:
    assert isinstance(result, Metric), result
    return result


def detail(result: Result) -> tuple[Tensor, Tensor | None]:
    """Values and standard errors."""
    assert isinstance(result, Detail), result
    errors = None if result.se is None else torch.tensor(result.se, dtype=torch.float64)
    return torch.tensor(result.values, dtype=torch.float64), errors


# --- Vectors ----------------------------------------------------------------------------------------------


def test_active_units_measure_the_variance_over_images() -> None:
    x = torch.linspace(-1, 1, 1001).unsqueeze(1)  # variance 1/3
    means = torch.cat([x, 0.1 * x, 0.2 * x, 5 + 0 * x], 1)  # variances .33, .0033, .013, 0
    assert active_units(means).tolist() == [True, False, True, False]


def test_the_count_of_active_units_errs_where_variances_are_at_the_threshold() -> None:
    """Far from it the count is certain. At it, a dimension is active in a share of the resamples that is
    uniform on [0, 1], so its variance is E[p (1 - p)] = 1/6; and there is an offset of 1000."""
    sure = torch.randn(300, 4, generator=noise(0)) * torch.tensor([1.0, 0.5, 0.01, 0.0]) + 1000
    counts = resampled_active_units(sure.double(), noise(1))
    assert counts.shape == (RESAMPLES,)
    assert counts.tolist() == [2] * RESAMPLES
    # Of two images, half of the resamples have one of them twice, and no variance.
    pair = resampled_active_units(torch.tensor([[-1.0], [1.0]]).double(), noise(1)).double()
    assert abs(pair.mean().item() - 0.5) < 4 * 0.5 / math.sqrt(RESAMPLES)
    variances = []
    for seed in range(8):
        border = 0.1 * torch.randn(300, 60, generator=noise(seed), dtype=torch.float64)
        variances.append(resampled_active_units(border, noise(seed)).double().var())
    found = torch.stack(variances)
    assert abs(found.mean().item() - 60 / 6) < 4 * found.std().item() / math.sqrt(8)


def test_variances_of_means_have_the_errors_of_variances() -> None:
    """Of Gaussian means, sigma^2 sqrt(2 / N); of +1 and -1, whose square never varies, next to none."""
    scale = torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)
    gaussian = scale * torch.randn(20_000, 3, generator=noise(0), dtype=torch.float64) + 100
    values, errors = variance_of_means(gaussian)
    torch.testing.assert_close(errors, scale.square() * math.sqrt(2 / 20_000), rtol=0.05, atol=0)
    assert ((values - scale.square()).abs() < 4 * errors).all()
    coin = (2 * (torch.arange(1000) % 2) - 1).double().unsqueeze(1)
    values, errors = variance_of_means(coin)
    assert values.item() == 1
    assert errors.item() == 0


def test_the_rate_of_each_dimension_is_torchs_divergence_averaged_over_images() -> None:
    means, log_variances = (torch.randn(40, 3, generator=noise(seed)) for seed in (0, 1))
    means[:, 2] = log_variances[:, 2] = 0  # collapsed
    values, errors = detail(measured(means=means, log_variances=log_variances)["kl_per_dimension"])
    posterior = Normal(means.double(), (0.5 * log_variances.double()).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros(3).double(), 1.0))
    torch.testing.assert_close(values, expected.mean(0))
    torch.testing.assert_close(errors, expected.std(0) / math.sqrt(40))
    assert values[2] == 0


def test_dimensions_of_a_model_sum_to_its_rate() -> None:
    torch.manual_seed(0)
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=4)
    seen = observe(model, iter(torch.rand(64, 1, 8, 8, generator=noise(0)).split(20)))
    results = measure_latents(seen, noise(0))
    values, _ = detail(results["kl_per_dimension"])
    assert values.sum().item() == pytest.approx(seen.per_image["rate"].mean().item(), rel=1e-5)
    variances, _ = detail(results["variance_of_means"])
    units = metric(results["active_units"])
    assert units.value == (variances > 0.01).sum()
    assert units.n == 64
    assert {name for name, result in results.items() if isinstance(result, Skipped)} == CODE_NAMES


def test_a_point_mass_has_no_rate_in_any_dimension() -> None:
    results = measured(means=torch.randn(9, 2, generator=noise(0)), deterministic=True)
    assert isinstance(results["active_units"], Metric)
    rate = results["kl_per_dimension"]
    assert isinstance(rate, Skipped)
    assert "point mass" in rate.reason


def test_latents_that_say_nothing_or_are_broken() -> None:
    good = torch.randn(20, 2, generator=noise(0))
    broken = good.clone()
    broken[7, 0] = math.nan
    for means, reason in ((good[:1], "at least 2"), (broken, "not finite")):
        results = measured(means=means, log_variances=torch.zeros_like(means))
        for name in VECTOR_NAMES:
            result = results[name]
            assert isinstance(result, Skipped)
            assert reason in result.reason
    constant = measured(means=torch.full((20, 2), 7.0), log_variances=torch.zeros(20, 2))
    assert metric(constant["active_units"]).value == 0
    assert metric(constant["active_units"]).se == 0
    for log_variance in (-200.0, 200.0):
        values, errors = detail(
            measured(means=good, log_variances=torch.full_like(good, log_variance))["kl_per_dimension"]
        )
        assert errors is not None
        assert values.isfinite().all()
        assert errors.isfinite().all()
    overflow = measured(means=good, log_variances=torch.full_like(good, 2000))["kl_per_dimension"]
    assert isinstance(overflow, Skipped)


# --- Codes ------------------------------------------------------------------------------------------------


def test_perplexity_is_k_for_uniform_and_1_for_constant_codes() -> None:
    assert perplexity(code_counts(torch.arange(12).repeat(5).view(3, 20), 12)).item() == pytest.approx(12)
    assert perplexity(code_counts(torch.full((4, 5), 7), 12)).item() == pytest.approx(1)
    two = code_counts(torch.tensor([0, 0, 0, 3]), 4)
    assert perplexity(two).item() == pytest.approx(4 / 27**0.25)  # exp(-(3/4 log 3/4 + 1/4 log 1/4))


def test_counts_of_batches_add_up() -> None:
    codes = torch.randint(9, (50, 4, 4), generator=noise(0))
    parts = sum(code_counts(part, 9) for part in codes.split(17))
    assert torch.equal(parts, torch.bincount(codes.flatten(), minlength=9).double())


def test_what_is_said_of_codes_by_hand() -> None:
    grids = torch.tensor([[0, 0], [0, 1], [1, 3]], dtype=torch.uint8)
    results = measured(codes=(grids,), codebook=6)
    frequencies, _ = detail(results["code_usage"])
    torch.testing.assert_close(frequencies, torch.tensor([3, 2, 0, 1, 0, 0], dtype=torch.float64) / 6)
    entropy = math.log(6) - (3 * math.log(3) + 2 * math.log(2)) / 6
    assert metric(results["perplexity"]).value == pytest.approx(math.exp(entropy))
    assert metric(results["usage"]).value == 0.5
    assert metric(results["dead_codes"]).value == 3
    assert metric(results["dead_codes"]).n == 3
    assert {name for name, result in results.items() if isinstance(result, Skipped)} == VECTOR_NAMES


def draw_codes(n: int, seed: int) -> Tensor:
    """Images of 16 positions that choose among the three codes of one of four palettes, of unequal
    frequencies: positions of one image are far from independent."""
    g = noise(seed)
    palette = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), n, replacement=True, generator=g)
    within = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 16 * n, replacement=True, generator=g)
    return 3 * palette.unsqueeze(1) + within.view(n, 16)


def test_the_error_of_the_perplexity_is_its_spread_over_sets_of_images() -> None:
    runs = [measured(codes=(draw_codes(200, seed),), codebook=12)["perplexity"] for seed in range(150)]
    values = torch.tensor([metric(run).value for run in runs])
    errors = torch.tensor([metric(run).se or 0 for run in runs])
    assert values.std().item() == pytest.approx(errors.mean().item(), rel=0.2)  # known to 6%
    counts = code_counts(draw_codes(200, 0), 12)
    p = counts / counts.sum()
    variance = (p * p.log().square()).sum() - perplexity(counts).log().square()
    independent = perplexity(counts) * (variance / counts.sum()).sqrt()
    assert errors.mean() > 2 * independent, "as if positions were independent"


def test_the_mean_surprise_is_the_entropy() -> None:
    codes = draw_codes(50, 3)
    counts = code_counts(codes, 12)
    assert surprise(codes, counts).mean().item() == pytest.approx(perplexity(counts).log().item())


def test_the_error_of_the_usage_is_the_jackknife_carried_out() -> None:
    """Leaving out every image in turn and counting again."""
    codes = torch.randint(60, (25, 3), generator=noise(0))
    n = len(codes)
    used = len(codes.unique())
    without = torch.tensor([len(torch.cat([codes[:i], codes[i + 1 :]]).unique()) for i in range(n)]).double()
    assert torch.equal(codes_of_one_image(codes, 60), used - without)
    expected = math.sqrt((without - without.mean()).square().sum().item() * (n - 1) / n)
    assert expected > 1
    results = measured(codes=(codes.to(torch.uint8),), codebook=60)
    assert metric(results["dead_codes"]).se == pytest.approx(expected)
    assert metric(results["usage"]).se == pytest.approx(expected / 60)
    assert metric(results["usage"]).value == used / 60


def test_the_error_of_the_usage_is_its_spread_over_sets_of_images() -> None:
    """Of images with one code each, from a long tail."""
    tail = 1 / torch.arange(1, 201).double()
    runs = [
        measured(
            codes=(torch.multinomial(tail, 200, True, generator=noise(seed)).unsqueeze(1),), codebook=200
        )
        for seed in range(150)
    ]
    values = torch.tensor([metric(run["dead_codes"]).value for run in runs])
    errors = torch.tensor([metric(run["dead_codes"]).se or 0 for run in runs])
    # The jackknife of a count that still rises with N is known to err on the side of caution.
    assert 0.9 * values.std().item() < errors.mean().item() < 1.6 * values.std().item()


def test_each_level_is_measured_by_itself() -> None:
    coarse, fine = torch.zeros(4, 1, dtype=torch.uint8), torch.arange(8, dtype=torch.uint8).view(4, 2)
    results = measured(codes=(coarse, fine), codebook=8)
    assert {name for name in results if name not in VECTOR_NAMES} == {
        f"{name}_{level}" for name in CODE_NAMES for level in (0, 1)
    }
    assert metric(results["perplexity_0"]).value == pytest.approx(1)
    assert metric(results["perplexity_0"]).se == 0
    assert metric(results["perplexity_1"]).value == pytest.approx(8)
    assert metric(results["dead_codes_0"]).value == 7


def test_codes_of_a_single_image_have_no_error() -> None:
    results = measured(codes=(torch.tensor([[1, 2, 2]]),), codebook=4)
    for name in ("perplexity", "usage", "dead_codes"):
        assert metric(results[name]).se is None
    assert metric(results["usage"]).value == 0.5
