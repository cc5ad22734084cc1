"""Oracles 13 and 16: triangular without a blind spot, inverse, log-determinant, normalisation."""

import math

import pytest
import torch

import vaezoo
from vaezoo.distributions import LOG_2PI
from vaezoo.errors import VaezooError
from vaezoo.priors import PRIORS, LatentShape


def make(dim, seed=0, std=0.3, **options):
    torch.manual_seed(seed)
    prior = PRIORS.get("flow")
    model = prior(prior.Config(**{"layers": 3, "hidden": 16, **options}), LatentShape(((dim,),))).double()
    for parameter in model.parameters():  # away from the start, where every layer is the identity
        torch.nn.init.normal_(parameter, std=std)
    return model


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_inverse(dim):
    model = make(dim)
    model.mean.fill_(3)
    model.scale.fill_(0.2)
    z = 3 + torch.randn(50, dim, dtype=torch.float64)
    u, _ = model(z)
    with torch.no_grad():
        torch.testing.assert_close(model.inverse(u), z, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_log_determinant_is_that_of_the_jacobian(dim):
    model = make(dim)
    model.scale.uniform_(0.5, 2)
    z = torch.randn(4, dim, dtype=torch.float64)
    _, log_det = model(z)
    for row, expected in zip(z, log_det):
        jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None])[0][0], row)
        assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(expected.item(), abs=1e-8)


def test_a_layer_reads_all_earlier_dimensions_and_no_other():
    layer = make(5, std=1.0).layers[0]
    z = torch.randn(5, dtype=torch.float64)
    for which in (0, 1):
        jacobian = torch.autograd.functional.jacobian(lambda v, i=which: layer(v[None])[i][0], z)
        assert torch.equal(jacobian != 0, torch.ones(5, 5).tril(-1).bool())


def test_density_integrates_to_one():
    model = make(2, std=0.25)
    steps = torch.linspace(-15, 15, 1501, dtype=torch.float64)
    z = torch.cartesian_prod(steps, steps)
    with torch.no_grad():
        total = sum(part.exp().sum() for part in map(model.log_prob, z.split(100_000)))
    assert total.item() * 0.02**2 == pytest.approx(1, abs=1e-3)


def test_samples_follow_the_density():
    """As many of them lie in a region as the density integrates to over it."""
    model = make(2, std=0.25)
    z = model.sample(20_000, torch.Generator().manual_seed(0))
    steps = torch.linspace(-15, 15, 1501, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps)
    with torch.no_grad():
        mass = torch.cat([model.log_prob(part).exp() for part in grid.split(100_000)]) * 0.02**2
    for inside in (
        lambda x: x[:, 0] > 0.3,
        lambda x: x[:, 1] > x[:, 0].square(),
        lambda x: x.norm(dim=1) < 1,
    ):
        expected = mass[inside(grid)].sum().item()
        found = inside(z).double().mean().item()
        assert 0.02 < expected < 0.98
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / len(z)) + 5e-3


def test_it_starts_as_the_gaussian_of_the_latents():
    prior = PRIORS.get("flow")
    z = torch.randn(500, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 9.0]) + 4
    model = prior(prior.Config(), LatentShape(((3,),))).double()
    model.initialize(z)
    expected = torch.distributions.Normal(z.mean(0), z.std(0, correction=0)).log_prob(z).sum(1)
    torch.testing.assert_close(model.log_prob(z), expected)
    model.initialize(torch.full((5, 3), 2.0).double())
    assert model.log_prob(torch.full((1, 3), 2.0).double()).item() == pytest.approx(-1.5 * LOG_2PI)


def test_it_learns_a_density_of_known_entropy():
    """A parabola with noise: z1 ~ N(0, 1), z2 ~ N(z1^2, 1/4). No Gaussian comes within .8 nats of it."""
    prior = PRIORS.get("flow")
    torch.manual_seed(0)
    model = prior(prior.Config(layers=3, hidden=32), LatentShape(((2,),)))

    def draw(n):
        z = torch.randn(n, 2)
        z[:, 1] = z[:, 0].square() + 0.5 * z[:, 1]
        return z

    model.initialize(draw(10_000))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(400):
        optimizer.zero_grad()
        model.losses(draw(256), vaezoo.Progress(0, 1, 1))["prior"].total.backward()
        optimizer.step()
    entropy = 2 * 0.5 * (LOG_2PI + 1) + math.log(0.5)
    assert -model.log_prob(draw(10_000)).mean().item() == pytest.approx(entropy, abs=0.1)


def test_fit_prior_trains_it_from_the_scale_of_the_latents():
    data = vaezoo.load_data("digits")
    torch.manual_seed(0)
    model = vaezoo.create("ae", image_shape=data.image_shape, latent_dim=3, network_options={"hidden": [32]})
    run = vaezoo.fit_prior(model, data, "flow", layers=2, hidden=16, epochs=2, progress=False)
    z, train = (model.latents(part.batch(torch.arange(len(part)))) for part in (data.validation, data.train))
    torch.testing.assert_close(model.prior.scale, train.std(0, correction=0))
    assert run.best_loss == pytest.approx(-model.prior.log_prob(z).mean().item(), rel=1e-4)
    assert model.sample(5).shape == (5, 1, 8, 8)


def test_untypical_latents_cost_much_and_stay_finite():
    model = make(4, std=2.0)
    z = 1e3 * torch.randn(10, 4, dtype=torch.float64)
    assert model.log_prob(z).isfinite().all()
    assert model.sample(100, torch.Generator().manual_seed(0)).isfinite().all()


def test_refuses_codes_and_layers_that_are_too_narrow():
    prior = PRIORS.get("flow")
    with pytest.raises(VaezooError, match="prior over one real vector"):
        prior(prior.Config(), LatentShape(((7, 7),), codes=512))
    with pytest.raises(VaezooError, match="hidden=4 is too small for a latent of 10"):
        make(10, hidden=4)
