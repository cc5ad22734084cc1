"""The two-stage prior: probabilistic PCA where it is linear, enumeration over u where it is not."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import MultivariateNormal, Normal

import vaezoo
from vaezoo.errors import VaezooError
from vaezoo.objective import Progress
from vaezoo.priors import PRIORS, LatentShape
from vaezoo.priors.two_stage import FLOOR, LOG_VARIANCE, spread_noise

PROGRESS = Progress(torch.tensor(0.0), 1, 1)


def make(dim, **options):
    torch.manual_seed(0)
    prior = PRIORS.get("two_stage")
    return prior(prior.Config(**{"hidden": 8, "depth": 2, **options}), LatentShape(((dim,),)))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def probabilistic_pca(widen=1.0, shift=0.0):
    """A linear second stage with the exact posterior, or one that is `widen` times as wide and shifted; its
    marginal; and the gap of its ELBO. The columns of W are orthogonal, so the posterior is diagonal."""
    model = make(3).double()
    w = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q * torch.tensor([1.5, 0.7, 0.1])
    b = torch.randn(3, dtype=torch.float64)
    squares = w.square().sum(0) + 0.3**2
    with torch.no_grad():
        model.mean.copy_(torch.tensor([1.0, -2.0, 5.0]))
        model.scale.copy_(torch.tensor([0.5, 3.0, 1.0]))
        model.log_gamma.fill_(0.5 * math.log(0.3**2 - FLOOR**2))
        for network in (model.encoder, model.decoder):
            network.head.weight.zero_()
        model.decoder.head.weight[:, -3:] = w
        model.decoder.head.bias.copy_(b)
        model.encoder.head.weight[:3, -3:] = w.T / squares[:, None]
        model.encoder.head.bias[:3] = -(w.T @ b) / squares + shift
        log_variance = torch.log(widen**2 * 0.3**2 / squares)
        model.encoder.head.bias[3:] = LOG_VARIANCE * torch.atanh(log_variance / LOG_VARIANCE)
    scale = torch.diag(model.scale)
    covariance = scale @ (w @ w.T + 0.3**2 * torch.eye(3, dtype=torch.float64)) @ scale
    # KL(q || posterior), the same for all z.
    gap = 0.5 * (3 * (widen**2 - 1 - math.log(widen**2)) + (shift**2 * squares / 0.3**2).sum())
    return model, MultivariateNormal(model.mean + model.scale * b, covariance), gap


@torch.no_grad()
def scores(model, z, k, repeats):
    """log_prob of z [B, D] with fresh noise each time, [repeats, B]."""
    draws = generator(1)
    rows = []
    for _ in range(repeats):
        model.noise = spread_noise(k, z.shape[1], draws)
        rows.append(model.log_prob(z))
    return torch.stack(rows)


def within(values, expected, dim=0):
    error = values.std(dim) / math.sqrt(values.shape[dim])
    return ((values.mean(dim) - expected).abs() < 4 * error).all()


def elbo(model, z, repeats=200):
    """The ELBO averaged over z, with fresh draws each time, [repeats]."""
    torch.manual_seed(2)
    with torch.no_grad():
        losses = [model.losses(z, PROGRESS)["prior"] for _ in range(repeats)]
    for loss in losses:
        assert loss.terms["prior_nll"] == loss.total == loss.terms["distortion"] + loss.terms["rate"]
    return -torch.stack([loss.total for loss in losses])


def test_with_the_exact_posterior_the_bound_is_the_marginal():
    model, marginal, _ = probabilistic_pca()
    z = marginal.sample((50,))
    torch.testing.assert_close(model.log_prob(z), marginal.log_prob(z), rtol=0, atol=1e-8)
    assert within(elbo(model, z), marginal.log_prob(z).mean())


def test_with_another_posterior_it_is_a_lower_bound_that_rises():
    """The weights are unbiased, E[exp(bound)] = p(z), so E[bound] is below log p(z), by KL(q || p(u|z)) at
    one draw."""
    model, marginal, gap = probabilistic_pca(widen=1.5, shift=0.2)
    z = marginal.sample((20,))
    exact = marginal.log_prob(z)
    one, many = scores(model, z, 1, 1000), scores(model, z, 4, 1000)
    assert within((many - exact).exp(), 1.0)
    assert within(one, exact - gap)
    assert within(elbo(model, z), exact.mean() - gap)
    assert (one.mean(0) < many.mean(0)).all()
    assert (many.mean(0) < exact).all()


def random_model():
    """p(z) far from Gaussian, with q(u|z) = p(u); and the integral over u as a sum over a grid."""
    model = make(2).double()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.normal_(std=0.5)
        for parameter in model.encoder.head.parameters():
            parameter.zero_()
        model.mean.copy_(torch.tensor([3.0, -1.0]))
        model.scale.copy_(torch.tensor([0.5, 2.0]))
        steps = torch.linspace(-6, 6, 241, dtype=torch.float64)
        u = torch.cartesian_prod(steps, steps)
        weights = Normal(0, 1).log_prob(u).sum(1).softmax(0)
        return model, weights, model.decode(u)


def test_the_bound_of_a_nonlinear_one_is_unbiased_for_the_density_by_enumeration():
    model, weights, p = random_model()
    z = model.sample(10, generator())
    density = (p.log_prob(z[:, None]) + weights.log()).logsumexp(1)
    found = scores(model, z, 16, 400)
    assert within((found - density).exp(), 1.0)
    assert (found.mean(0) < density).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_moments_of_enumeration(temperature):
    model, weights, p = random_model()
    if temperature != 1:
        with torch.no_grad():
            u = torch.cartesian_prod(*[temperature * torch.linspace(-6, 6, 241, dtype=torch.float64)] * 2)
            p = model.decode(u)
    mean = weights @ p.mean
    second = torch.einsum("n,ni,nj->ij", weights, p.mean, p.mean)
    second += temperature**2 * torch.diag(weights @ p.variance)
    z = model.sample(50_000, generator(), temperature)
    assert not z.requires_grad
    assert within(z, mean)
    assert within(z[:, :, None] * z[:, None], second)
    above = 1 - Normal(p.mean[:, 0], temperature * p.variance[:, 0].sqrt()).cdf(mean[0])
    assert within((z[:, 0] > mean[0]).double(), weights @ above)


def test_it_starts_as_the_gaussian_of_the_latents():
    model = make(3).double()
    z = torch.randn(500, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 9.0]) + 4
    z[:, 2] = z[:, 0]
    model.initialize(z)
    expected = Normal(z.mean(0), z.std(0, correction=0)).log_prob(z).sum(1)
    torch.testing.assert_close(model.log_prob(z), expected)
    model.initialize(torch.full((5, 3), 2.0).double())
    assert model.log_prob(torch.full((1, 3), 2.0).double()).isfinite()


def ring(n, draws):
    """Eight Gaussians on a circle."""
    angle = 2 * math.pi / 8 * torch.randint(8, (n,), generator=draws)
    return 3 + 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(n, 2, generator=draws)


def test_it_learns_what_no_gaussian_is():
    """Held-out bound, above the best Gaussian and below the truth; and it integrates to no more than 1."""
    draws = generator()
    model = make(2, hidden=32)
    model.initialize(ring(10_000, draws))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        model.losses(ring(256, draws), PROGRESS)["prior"].total.backward()
        optimizer.step()
    z = ring(10_000, draws)
    gaussian = MultivariateNormal(z.mean(0), z.T.cov()).log_prob(z).mean().item()
    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.2**2)
    with torch.no_grad():
        assert gaussian + 0.5 < -model.losses(z, PROGRESS)["prior"].total.item()
        assert gaussian + 0.8 < model.log_prob(z).mean().item() < -entropy
        steps = torch.linspace(-2, 8, 201)
        mass = model.log_prob(torch.cartesian_prod(steps, steps)).exp().sum().item() * (10 / 200) ** 2
    assert 0.7 < mass < 1.05
    assert model.log_gamma.exp() < 0.25


def test_gamma_cannot_vanish():
    """Latents on a line, and a decoder that knows it: without a floor the density would be infinite."""
    model = make(2)
    with torch.no_grad():
        model.log_gamma.fill_(-1000.0)
    model.scale.copy_(torch.tensor([1.0, 10.0]))
    p = model.decode(torch.zeros(1, 2))
    torch.testing.assert_close(p.variance[0], FLOOR**2 * model.scale.square())
    loss = model.losses(torch.randn(5, 2, generator=generator()), PROGRESS)["prior"].total
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_untypical_latents_cost_much_and_stay_finite():
    model = make(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1.0, generator=generator())
    z = (1e3 * torch.randn(10, 4, generator=generator())).requires_grad_()
    score = model.log_prob(z)
    score.sum().backward()
    assert score.isfinite().all()
    assert z.grad.isfinite().all()


def test_noise_is_spread_over_the_quantiles_and_each_point_is_normal():
    noise = spread_noise(16, 5, generator())
    quantiles = Normal(0, 1).cdf(noise) * 16
    for column in quantiles.floor().T:
        assert sorted(column.tolist()) == list(range(16))
    draws = generator()
    one = torch.stack([spread_noise(16, 2, draws)[3] for _ in range(4000)])
    assert within(one, 0.0)
    assert within(one.square(), 1.0)
    assert within(one[:, 0] * one[:, 1], 0.0)


def test_a_latent_has_one_score_whatever_the_mode_the_seed_and_the_rest_of_the_batch():
    model = make(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z = torch.randn(6, 3, generator=generator())
    score = model.log_prob(z)
    torch.manual_seed(7)
    torch.testing.assert_close(model.eval().log_prob(z[2:3]), score[2:3])
    assert torch.equal(make(3).noise, model.noise)


def test_fit_prior_and_a_checkpoint(tmp_path):
    data = vaezoo.load_data("digits")
    torch.manual_seed(0)
    options = {"image_shape": data.image_shape, "latent_dim": 3, "network_options": {"hidden": [32]}}
    model = vaezoo.create("vae", **options)
    run = vaezoo.fit_prior(model, data, "two_stage", hidden=16, epochs=2, progress=False)
    assert math.isfinite(run.best_loss)
    vaezoo.save(model, tmp_path / "two_stage.safetensors")
    again = vaezoo.load(tmp_path / "two_stage.safetensors")
    again.prior.train()
    x = data.validation.batch(torch.arange(20))
    assert torch.equal(again.prior.sample(5, generator()), model.prior.sample(5, generator()))
    assert torch.equal(again.sample(5, generator()), model.sample(5, generator()))
    assert torch.equal(again.log_prob(x, 3, generator()), model.log_prob(x, 3, generator()))


def test_it_stays_on_the_device():
    with FakeTensorMode():
        with torch.device("cuda"):
            model = make(3)
            z = torch.randn(5, 3)
        model.initialize(z)
        assert model.losses(z, PROGRESS)["prior"].total.device.type == "cuda"
        assert model.log_prob(z).device.type == model.sample(4).device.type == "cuda"


def test_refuses_codes():
    prior = PRIORS.get("two_stage")
    with pytest.raises(VaezooError, match="two_stage is a prior over one real vector"):
        prior(prior.Config(), LatentShape(((7, 7),), codes=512))
