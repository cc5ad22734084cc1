"""Oracle 7: the rate of a linear Gaussian encoder in its three parts, and its aggregate posterior N(m, S)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

import vaezoo
from vaezoo.config import BaseConfig
from vaezoo.distributions import DiagonalGaussian
from vaezoo.evaluation import aggregate
from vaezoo.evaluation.aggregate import aggregate_log_probs, measure_aggregate, measure_split, prior_hole
from vaezoo.evaluation.observe import Observed, observe
from vaezoo.evaluation.report import Metric, Result, Results, Skipped
from vaezoo.priors.base import LatentShape
from vaezoo.priors.gaussian_mixture import GaussianMixture
from vaezoo.priors.standard_normal import StandardNormal

MIXING = torch.tensor(
    [[1.0, 0.3, 0.0, -0.2], [0.8, -0.5, 0.4, 0.0], [0.1, 0.9, -0.6, 0.5]], dtype=torch.float64
)
NOISE = torch.tensor([0.6, 0.8, 0.5], dtype=torch.float64)
COVARIANCE = MIXING @ MIXING.T + NOISE.square().diag()
LOG_DET = torch.logdet(COVARIANCE)
KNOWN = {
    "mutual_information": (LOG_DET - NOISE.square().log().sum()).item() / 2,
    "total_correlation": (COVARIANCE.diagonal().log().sum() - LOG_DET).item() / 2,
    "dimension_wise_kl": (COVARIANCE.diagonal() - 1 - COVARIANCE.diagonal().log()).sum().item() / 2,
}
#: Bound on the bias of each part, in nats times N: some 8 for the mutual information, 5 for the rest.
BIAS = 12


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(dims: int) -> StandardNormal:
    return StandardNormal(BaseConfig(), LatentShape(((dims,),))).double()


def observed(means: Tensor, log_variances: Tensor, seed: int = 0) -> Observed:
    """As a pass over the images would leave it."""
    z = DiagonalGaussian(means, log_variances).sample(generator=noise(seed))
    fields = {"means": means, "log_variances": log_variances, "draws": z, "deterministic": False}
    return cast(Observed, SimpleNamespace(**fields))


def linear(n: int, seed: int) -> Observed:
    """z|x ~ N(A x, diag s^2) of x ~ N(0, I)."""
    x = torch.randn(n, 4, generator=noise(1000 + seed), dtype=torch.float64)
    means = x @ MIXING.T
    return observed(means, (2 * NOISE.log()).expand_as(means), seed)


def metric(result: Result) -> Metric:
    assert isinstance(result, Metric), result
    return result


def error(result: Result) -> float:
    se = metric(result).se
    assert se is not None
    return se


def values(results: Results) -> dict[str, float]:
    return {name: metric(result).value for name, result in results.items()}


# --- The rate in three parts ------------------------------------------------------------------------------


def test_the_parts_are_those_of_a_linear_gaussian_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within four standard errors, and the standard errors are the spread over data sets."""
    monkeypatch.setattr(aggregate, "POINTS", 500)
    assert KNOWN["total_correlation"] > 0.2, "a case without correlation would show nothing"
    runs = [measure_split(normal(3), linear(1000, seed), seed) for seed in range(16)]
    for name, truth in KNOWN.items():
        found = torch.tensor([metric(run[name]).value for run in runs])
        errors = torch.tensor([error(run[name]) for run in runs])
        assert ((found - truth).abs() < 4 * errors + BIAS / 1000).all(), name
        assert abs(found.mean().item() - truth) < 4 * found.std().item() / math.sqrt(16) + BIAS / 1000, name
        # The spread over 16 data sets is known to 18%.
        assert found.std().item() == pytest.approx(errors.mean().item(), rel=0.45), name


def test_q_of_z_is_the_mean_over_all_images_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "DENSITIES", 3 * 7 * 2)  # blocks of three points, and a smaller last one
    means, log_variances, z = (torch.randn(n, 2, generator=noise(n), dtype=torch.float64) for n in (7, 7, 4))
    log_variances = log_variances[:7]
    joint, marginals = aggregate_log_probs(DiagonalGaussian(means, log_variances), z)
    assert joint.shape == (4,)

    def density(i: int, j: int, d: int) -> float:
        variance = math.exp(log_variances[j, d])
        return math.exp(-((z[i, d] - means[j, d]) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    for i in range(4):
        expected = sum(density(i, j, 0) * density(i, j, 1) for j in range(7)) / 7
        assert joint[i].item() == pytest.approx(math.log(expected), abs=1e-12)
        for d in range(2):
            expected = sum(density(i, j, d) for j in range(7)) / 7
            assert marginals[i, d].item() == pytest.approx(math.log(expected), abs=1e-12)


def test_posteriors_equal_to_the_prior_say_nothing() -> None:
    zeros = torch.zeros(50, 3, dtype=torch.float64)
    results = measure_split(normal(3), observed(zeros, zeros), 0)
    assert values(results) == pytest.approx(dict.fromkeys(KNOWN, 0.0), abs=1e-12)


def test_posteriors_that_do_not_overlap_saturate_and_say_so() -> None:
    """Each z tells its image: log N nats, however far apart they are. One of two dimensions has it all."""
    means = torch.zeros(60, 2, dtype=torch.float64)
    means[:, 0] = 100 * torch.arange(60)
    for log_variance in (0.0, -60.0):
        results = measure_split(normal(2), observed(means, torch.full_like(means, log_variance)), 0)
        information = metric(results["mutual_information"])
        assert information.value == pytest.approx(math.log(60), abs=1e-9)
        assert "saturated" in information.note
        assert "saturated" in metric(results["total_correlation"]).note
        assert metric(results["total_correlation"]).value == pytest.approx(0, abs=1e-9)
    assert not any(
        "saturated" in metric(result).note for result in measure_split(normal(3), linear(500, 0), 0).values()
    )


def test_the_information_lacks_half_of_the_share_that_a_point_has_of_q() -> None:
    """To first order, over data sets of 200 images."""
    lacking, shares = [], []
    for seed in range(150):
        seen = linear(200, seed)
        assert seen.means is not None
        assert seen.log_variances is not None
        assert seen.draws is not None
        q = DiagonalGaussian(seen.means, seen.log_variances)
        information = q.log_prob(seen.draws) - aggregate_log_probs(q, seen.draws)[0]
        lacking.append(KNOWN["mutual_information"] - information.mean())
        shares.append(information.exp().mean() / 200)
    gap, share = torch.stack(lacking), torch.stack(shares).mean().item()
    assert abs(gap.mean().item() - share / 2) < 4 * gap.std().item() / math.sqrt(150)
    assert gap.mean().item() > 4 * gap.std().item() / math.sqrt(150)


def test_where_it_saturates_the_fitted_mixture_bounds_the_information_from_the_other_side() -> None:
    x = torch.randn(2000, 6, generator=noise(0), dtype=torch.float64)
    seen = observed(x, torch.full_like(x, 2 * math.log(0.1)))
    truth = 6 * math.log(1.01 / 0.01) / 2
    information = metric(measure_split(normal(6), seen, 0)["mutual_information"])
    assert information.value < 0.6 * truth
    assert seen.draws is not None
    rate = 6 * (1 + 0.01 - 1 - math.log(0.01)) / 2
    bound = rate - metric(prior_hole(normal(6), seen.draws, 0)).value
    assert truth - 0.1 < bound < truth + 0.5


def test_points_are_drawn_from_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in the order of their classes: the first ones alone would not be the data."""
    monkeypatch.setattr(aggregate, "POINTS", 100)
    means = torch.cat([torch.zeros(500, 1), torch.full((500, 1), 10.0)]).double()
    results = measure_split(normal(1), observed(means, torch.zeros_like(means)), 0)
    assert metric(results["mutual_information"]).n == 100
    # E log q(z)/p(z) is -log 2 in one class and 50 - log 2 in the other.
    found = metric(results["dimension_wise_kl"])
    assert abs(found.value - (25 - math.log(2))) < 4 * error(found) + 0.1


# --- The hole in the prior --------------------------------------------------------------------------------


def gaussian(n: int, mean: Tensor, covariance: Tensor, seed: int = 0) -> Tensor:
    draws = torch.randn(n, len(mean), generator=noise(seed), dtype=torch.float64)
    return mean + draws @ torch.linalg.cholesky(covariance).T


def parameters(dims: int, components: int) -> int:
    return components * (1 + dims + dims * (dims + 1) // 2) - 1


def test_a_prior_that_is_q_has_no_hole() -> None:
    """One Gaussian is best, and its fit with P parameters to n points costs P / 2n nats, as maximum
    likelihood does."""
    for dims, n in ((2, 4000), (5, 2000), (20, 4000)):
        hole = metric(prior_hole(normal(dims), gaussian(n, torch.zeros(dims), torch.eye(dims).double()), 0))
        assert abs(hole.value) < 4 * (hole.se or 0) + 2 * parameters(dims, 1) / n
        assert hole.note.startswith("Gaussian")
        assert hole.n == n / 4


def test_the_hole_of_a_gaussian_is_its_divergence_from_the_prior() -> None:
    mean = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
    divergence = (COVARIANCE.trace() + mean @ mean - 3 - LOG_DET).item() / 2
    for seed in range(3):
        hole = metric(prior_hole(normal(3), gaussian(4000, mean, COVARIANCE, seed), seed))
        assert abs(hole.value - divergence) < 4 * (hole.se or 0) + 2 * parameters(3, 1) / 4000
        assert hole.se is not None
        assert hole.se < 0.1 * divergence


def test_the_hole_between_two_clusters() -> None:
    """By quadrature: N(0, 1) against half N(-3, .25) and half N(3, .25)."""
    grid = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    pair = DiagonalGaussian(
        torch.tensor([[[-3.0]], [[3.0]]]).double(), torch.full((2, 1, 1), math.log(0.25)).double()
    )
    log_q = torch.logsumexp(pair.log_prob(grid.view(1, -1, 1)), 0) - math.log(2)
    log_p = normal(1).log_prob(grid.unsqueeze(1))
    divergence = torch.trapezoid(log_q.exp() * (log_q - log_p), grid).item()
    sides = 6 * (torch.rand(4000, 1, generator=noise(0), dtype=torch.float64) < 0.5) - 3
    z = sides + 0.5 * torch.randn(4000, 1, generator=noise(1), dtype=torch.float64)
    hole = metric(prior_hole(normal(1), z, 0))
    assert abs(hole.value - divergence) < 4 * (hole.se or 0) + 2 * parameters(1, 2) / 4000
    assert hole.note.startswith("mixture of 2")


def test_a_fit_is_not_measured_on_the_images_that_it_was_fitted_to() -> None:
    """Of q(z) = p(z), a fit to few images finds a hole on these, and the opposite on others."""
    dims, n = 6, 160
    holes = [
        metric(prior_hole(normal(dims), gaussian(n, torch.zeros(dims), torch.eye(dims).double(), s), s)).value
        for s in range(12)
    ]
    expected = -parameters(dims, 1) / n
    assert 4 * expected < sum(holes) / 12 < 0.5 * expected


# --- What is not measured, and why ------------------------------------------------------------------------


def reasons(results: Results) -> set[str]:
    assert set(results) == {*KNOWN, "prior_hole"}
    return {result.reason for result in results.values() if isinstance(result, Skipped)}


def test_a_point_mass_has_no_density_but_a_fitted_prior_may_have_a_hole() -> None:
    torch.manual_seed(0)
    model = vaezoo.create("ae", image_shape=(1, 4, 4), latent_dim=2)
    x = torch.rand(200, 1, 4, 4, generator=noise(0))
    (reason,) = reasons(measure_aggregate(model, observe(model, iter([x])), 0))
    assert "fit_prior" in reason
    prior = GaussianMixture(GaussianMixture.Config(components=1), model.latent)
    model.prior = prior
    prior.fit(model.represent(x))
    results = measure_aggregate(model, observe(model, iter([x])), 0)
    assert reasons(results) == {"q(z|x) is a point mass: it has no density"}
    hole = metric(results["prior_hole"])
    assert abs(hole.value) < 0.5
    with torch.no_grad():
        prior.means += 3 * prior.cholesky[0].diag()  # beside the latents
    assert metric(measure_aggregate(model, observe(model, iter([x])), 0)["prior_hole"]).value > 2


def test_codes_have_no_aggregate_over_vectors() -> None:
    model = vaezoo.create(
        "vq_vae", image_shape=(1, 8, 8), codes=4, code_dim=2, channels=4, residual_channels=2
    )
    results = measure_aggregate(model, observe(model, iter([torch.rand(3, 1, 8, 8)])), 0)
    assert reasons(results) == {aggregate.NO_VECTOR}
    assert all(isinstance(result, Skipped) for result in results.values())


def test_too_few_images_broken_latents_and_extreme_variances() -> None:
    good = torch.randn(100, 2, generator=noise(0), dtype=torch.float64)
    zeros = torch.zeros_like(good)
    broken = good.clone()
    broken[3, 1] = math.nan
    for means, log_variances, split, hole in (
        (good[:1], zeros[:1], "at least 2 images", "takes 40 images, not 1"),
        (broken, zeros, "not finite", "not finite"),
        (good, zeros + 2000, "not finite", "not finite"),
        (zeros, zeros - 2000, "not finite", "subspace"),
        (torch.cat([good[:, :1], 2 * good[:, :1]], 1), zeros - 60, None, "subspace"),
        (good, zeros - 60, None, None),
        (good, zeros + 60, None, None),
    ):
        seen = observed(means, log_variances)
        assert seen.draws is not None
        results = measure_split(normal(2), seen, 0) | {"prior_hole": prior_hole(normal(2), seen.draws, 0)}
        for name, result in results.items():
            reason = hole if name == "prior_hole" else split
            if reason is None:
                assert math.isfinite(metric(result).value)
                assert math.isfinite(error(result))
            else:
                assert isinstance(result, Skipped), (name, result)
                assert reason in result.reason


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_random_state() -> None:
    seen = linear(1200, 0)
    model = cast(vaezoo.Autoencoder, SimpleNamespace(require_prior=lambda: normal(3)))
    torch.manual_seed(5)
    first = measure_aggregate(model, seen, 0)
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(2))
    assert measure_aggregate(model, seen, 0) == first
    assert values(measure_aggregate(model, seen, 1)) != values(first)
