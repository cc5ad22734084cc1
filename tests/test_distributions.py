"""Oracles 4 and 15: closed forms, Monte Carlo within standard errors, normalisation by enumeration."""

import math

import pytest
import torch
from torch import distributions as td

from vaezoo.distributions import (
    Bernoulli,
    ContinuousBernoulli,
    Delta,
    DiagonalGaussian,
    DiscretizedLogisticMixture,
    Joint,
    Quantized,
    code_counts,
    log_density_of_each,
    perplexity,
)


@pytest.fixture
def gaussians():
    noise = torch.Generator().manual_seed(0)
    mean, log_variance, other_mean, other_log_variance = torch.randn(
        4, 3, 5, generator=noise, dtype=torch.float64
    )
    return DiagonalGaussian(mean, log_variance), DiagonalGaussian(other_mean, other_log_variance)


def as_torch(q):
    return td.Independent(td.Normal(q.mean, q.variance.sqrt()), 1)


def test_gaussian_agrees_with_torch(gaussians):
    q, p = gaussians
    z = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), as_torch(q).log_prob(z), rtol=0, atol=1e-10)
    torch.testing.assert_close(q.entropy(), as_torch(q).entropy(), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        td.kl_divergence(q, p), td.kl_divergence(as_torch(q), as_torch(p)), rtol=0, atol=1e-10
    )


def test_kl_to_the_standard_normal(gaussians):
    q, _ = gaussians
    standard = DiagonalGaussian(torch.zeros(3, 5).double(), torch.zeros(3, 5).double())
    torch.testing.assert_close(
        q.kl_per_dimension().sum(-1), td.kl_divergence(q, standard), rtol=0, atol=1e-12
    )
    assert torch.equal(standard.kl_per_dimension(), torch.zeros(3, 5).double())


def test_kl_agrees_with_monte_carlo(gaussians):
    q, p = gaussians
    z = q.sample((1_000_000 // 3,), generator=torch.Generator().manual_seed(2))
    estimates = q.log_prob(z) - p.log_prob(z)
    error = estimates.std(0) / math.sqrt(len(z))
    assert ((estimates.mean(0) - td.kl_divergence(q, p)).abs() < 4 * error).all()


def test_categorical_kl_to_uniform_is_log_k_minus_entropy():
    q = td.Categorical(logits=torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).double())
    uniform = td.Categorical(logits=torch.zeros(4, 9).double())
    torch.testing.assert_close(td.kl_divergence(q, uniform), math.log(9) - q.entropy(), rtol=0, atol=1e-10)


def test_gaussian_sample_moments(gaussians):
    q, _ = gaussians
    n = 200_000
    z = q.sample((n,), generator=torch.Generator().manual_seed(3))
    assert ((z.mean(0) - q.mean).abs() < 5 * (q.variance / n).sqrt()).all()
    assert ((z.var(0) / q.variance - 1).abs() < 5 * math.sqrt(2 / n)).all()


def test_reparameterised_gradient(gaussians):
    """d E[z^2] / d mean = 2 mean and d E[z^2] / d log_variance = variance, by the path through the sample."""
    mean = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor([[-0.4]], dtype=torch.float64, requires_grad=True)
    n = 400_000
    z = DiagonalGaussian(mean, log_variance).rsample((n,), generator=torch.Generator().manual_seed(4))
    (z.square().sum() / n).backward()
    assert mean.grad.item() == pytest.approx(2 * 0.7, abs=0.02)
    assert log_variance.grad.item() == pytest.approx(math.exp(-0.4), abs=0.02)


def test_delta_has_no_density():
    q = Delta(torch.ones(2, 3))
    assert torch.equal(q.log_prob(torch.ones(2, 3)), torch.full((2,), math.inf))
    assert torch.equal(q.log_prob(torch.zeros(2, 3)), torch.full((2,), -math.inf))
    assert q.sample((4,)).shape == (4, 2, 3)


def test_quantized_is_over_codes():
    codes = torch.tensor([[[0, 1]], [[2, 2]]])
    q = Quantized(torch.randn(2, 3, 1, 2), codes, torch.randn(2, 3, 1, 2))
    assert torch.equal(q.log_prob(codes), torch.zeros(2))
    assert torch.equal(q.log_prob(torch.tensor([[[0, 0]], [[2, 2]]])), torch.tensor([-math.inf, 0.0]))
    joint = Joint((q, q))
    assert joint.deterministic
    assert [level.shape for level in joint.draw()] == [(2, 1, 2), (2, 1, 2)]
    assert torch.equal(joint.log_prob(joint.draw()), torch.zeros(2))


def mixture(log_scale, components=3, seed=0, dtype=torch.float64):
    noise = torch.Generator().manual_seed(seed)
    shape = (2, components, 1, 2, 2)
    logits, offset = torch.randn(2, *shape, generator=noise, dtype=dtype)
    loc = torch.rand(shape, generator=noise, dtype=dtype) * 1.4 - 0.2  # some outside the image range
    return DiscretizedLogisticMixture(logits, loc, log_scale + 0.1 * offset)


LEVELS = torch.arange(256, dtype=torch.float64) / 255


@pytest.mark.parametrize("log_scale", [-7.0, -5.0, -3.0, -1.0, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_discretised_logistics_sum_to_one(log_scale, dtype):
    p = mixture(log_scale, dtype=dtype)
    grid = LEVELS.to(dtype).view(-1, 1, 1, 1, 1)
    total = torch.stack([p.log_prob(level.expand(2, 1, 2, 2)).double().exp() for level in grid]).sum(0)
    tolerance = 1e-6 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)


@pytest.mark.parametrize("log_scale", [-7.0, 0.0, 3.0])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_discretised_logistics_have_finite_gradients(log_scale, level):
    noise = torch.Generator().manual_seed(0)
    parameters = torch.randn(3, 1, 4, 1, 2, 2, generator=noise)
    parameters[2] += log_scale
    parameters.requires_grad_()
    p = DiscretizedLogisticMixture(*parameters)
    p.log_prob(torch.full((1, 1, 2, 2), level)).sum().backward()
    assert parameters.grad.isfinite().all()
    assert parameters.grad.abs().max() > 0


@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
def test_discretised_logistic_mean_is_within_half_a_level(log_scale):
    p = mixture(log_scale)
    probabilities = torch.stack([p.log_prob(level.expand(2, 1, 2, 2)).exp() for level in LEVELS])
    exact = (probabilities * LEVELS.view(-1, 1, 1, 1, 1)).sum(0)
    assert (p.mean - exact).abs().max() <= 0.5 / 255 + 1e-9


def test_discretised_logistic_samples_follow_the_probabilities():
    torch.manual_seed(0)
    one = DiscretizedLogisticMixture(
        *torch.tensor([[0.0, 1.0], [0.2, 0.7], [-3.0, -4.0]]).view(3, 1, 2, 1, 1, 1)
    )
    n = 100_000
    many = DiscretizedLogisticMixture(
        one.log_weights.expand(n, -1, -1, -1, -1),
        one.loc.expand(n, -1, -1, -1, -1),
        one.log_scale.expand(n, -1, -1, -1, -1),
    )
    counts = torch.bincount((many.sample().flatten() * 255).round().long(), minlength=256).double()
    grid = LEVELS.float().view(-1, 1, 1, 1, 1)
    expected = n * torch.stack([one.log_prob(level).exp().squeeze() for level in grid]).double()
    seen = expected > 5
    chi_squared = ((counts - expected).square() / expected)[seen].sum()
    degrees = int(seen.sum()) - 1
    assert chi_squared < degrees + 5 * math.sqrt(2 * degrees)


def test_perplexity():
    """Oracle 12."""
    assert perplexity(code_counts(torch.arange(64).view(4, 4, 4), 64)).item() == pytest.approx(64, rel=1e-5)
    assert perplexity(code_counts(torch.full((3, 5), 7), 64)).item() == pytest.approx(1)
    assert perplexity(code_counts(torch.tensor([0, 0, 0, 1]), 9)).item() == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel=1e-6
    )


LOGITS = [-1000.0, -90.0, -17.0, -1.0, -1e-8, 0.0, 1e-3, 0.7, 20.0, 88.0, 1000.0]


@pytest.mark.parametrize("x", [0.0, 1.0, 0.3])
def test_bernoulli_agrees_with_torch(x):
    """Within the rounding of numbers near 1, in float64 and in float32."""
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    value = torch.full_like(logits, x)
    exact = td.Bernoulli(logits=logits, validate_args=False).log_prob(value)
    p = Bernoulli(logits=logits, validate_args=False)
    torch.testing.assert_close(p.log_prob(value), exact, rtol=1e-14, atol=1e-14)
    single = Bernoulli(logits=logits.float(), validate_args=False).log_prob(value.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=1e-7)


def test_bernoulli_gradients():
    """d/dl = x - sigmoid(l), at l = 0 too, where decoders start; d/dx = l, reduced where x is broadcast."""
    logits = torch.tensor(LOGITS[2:-2], dtype=torch.float64, requires_grad=True)
    x = torch.rand(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_prob = Bernoulli(logits=logits, validate_args=False).log_prob(x)
    to_logits, to_x = torch.autograd.grad(log_prob.sum(), (logits, x), create_graph=True)
    torch.testing.assert_close(to_logits, (x - logits.sigmoid()).sum(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(to_x, logits.sum().expand(3, 1), rtol=0, atol=1e-12)
    (second,) = torch.autograd.grad(to_logits.sum(), logits)
    torch.testing.assert_close(second, -3 * logits.sigmoid() * (1 - logits.sigmoid()), rtol=0, atol=1e-12)


def test_bernoulli_under_function_transforms():
    def log_prob(logits, x):
        return Bernoulli(logits=logits, validate_args=False).log_prob(x).sum()

    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.func.vmap(torch.func.grad(log_prob), (0, None))(logits, x)
    torch.testing.assert_close(gradients, x - logits.sigmoid())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-100.0, -20.0, -3.0, -0.1, -1e-3, 0.0, 0.05, 0.1, 1.0, 30.0, 100.0])
def test_continuous_bernoulli_is_normalised_at_every_logit(logit, dtype):
    """torch's own class loses mass above logits of about 16, where its probability rounds to 1."""
    p = ContinuousBernoulli(torch.tensor([logit], dtype=dtype, requires_grad=True))
    n = 1_000_000
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    density = p.log_prob(x.to(dtype)).detach().double().exp()
    assert density.mean().item() == pytest.approx(1, abs=1e-3 if dtype == torch.float64 else 5e-3)
    assert (density * x).mean().item() / density.mean().item() == pytest.approx(p.mean.item(), abs=1e-4)
    (gradient,) = torch.autograd.grad(p.log_prob(torch.tensor([0.3], dtype=dtype)) + p.mean, p.logits)
    assert gradient.isfinite().all()


def test_continuous_bernoulli_is_torchs_where_that_is_right():
    logits = torch.linspace(-8, 8, 33, dtype=torch.float64)
    ours, theirs = ContinuousBernoulli(logits), td.ContinuousBernoulli(logits=logits, validate_args=False)
    x = torch.linspace(0, 1, 11, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-5)


def test_continuous_bernoulli_samples_have_its_mean():
    torch.manual_seed(0)
    p = ContinuousBernoulli(torch.tensor([-40.0, -2.0, 0.0, 5e-4, 3.0, 40.0], dtype=torch.float64))
    x = p.sample((100_000,))
    assert ((x >= 0) & (x <= 1)).all()
    assert ((x.mean(0) - p.mean).abs() < 5 * x.std(0) / math.sqrt(len(x))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_densities_by_matrix_products_are_those_of_the_differences(dtype):
    """Variances down to e^-6, where the products are 10^4 times as large as their sum; gradients too."""
    noise = torch.Generator().manual_seed(0)
    mean = torch.randn(50, 40, generator=noise, dtype=dtype)
    log_variance = torch.rand(50, 40, generator=noise, dtype=dtype) * 8 - 6
    log_variance[:, :20] = -6
    z = mean[:30] + torch.exp(log_variance[:30] / 2) * torch.randn(30, 40, generator=noise, dtype=dtype)
    inputs = [t.requires_grad_() for t in (mean, log_variance, z)]
    found = log_density_of_each(DiagonalGaussian(mean, log_variance), z)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = DiagonalGaussian(exact[0], exact[1]).log_prob(exact[2].unsqueeze(1))
    assert found.shape == (30, 50)
    assert found.dtype == dtype
    near = torch.arange(30)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found[near, near].double(), expected[near, near], rtol=0, atol=tolerance)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=tolerance)
    found.logsumexp(1).sum().backward()
    expected.logsumexp(1).sum().backward()
    for own, other in zip(inputs, exact):
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-4, atol=tolerance)
