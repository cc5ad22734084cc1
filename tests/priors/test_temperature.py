"""Sampling of priors over vectors at a temperature."""

import math

import pytest
import torch

import vaezoo
from vaezoo.errors import VaezooError
from vaezoo.priors import PRIORS, LatentShape

TEMPERATURES = (0.3, 1.0, 2.0)
N = 40_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(name, dim=3, **options):
    torch.manual_seed(0)
    prior = PRIORS.get(name)
    return prior(prior.Config(**options), LatentShape(((dim,),))).double().eval()


# Each with the covariance of its centres, which no temperature changes, and that of the noise around them.


def standard_normal():
    return make("standard_normal"), torch.zeros(3, 3), torch.eye(3)


def gaussian_mixture():
    prior = make("gaussian_mixture", components=2)
    prior.logits.copy_(torch.tensor([0.2, 0.8]).log())
    prior.means[1] = torch.tensor([1.0, 2.0, -1.0])
    prior.cholesky[0] = 2 * torch.eye(3) + torch.ones(3, 3).tril()
    difference = prior.means[1] - prior.means[0]
    noise = torch.einsum("k,kij,klj->il", prior.logits.exp(), prior.cholesky, prior.cholesky)
    return prior, 0.2 * 0.8 * torch.outer(difference, difference), noise


def vamp():
    torch.manual_seed(0)
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3, prior="vamp", components=4).double()
    with torch.no_grad():
        q = model.prior.mixture()
        return model.prior, q.mean.T.cov(correction=0), torch.diag(q.variance.mean(0))


def flow():
    prior = make("flow", hidden=4)  # its networks are 0 at the start
    prior.mean.copy_(torch.tensor([5.0, 0.0, 1.0]))
    prior.scale.copy_(torch.tensor([0.1, 2.0, 1.0]))
    return prior, torch.zeros(3, 3), torch.diag(prior.scale.square())


def two_stage():
    prior = make("two_stage", hidden=8)  # linear at the start, of unit variances
    prior.mean.copy_(torch.tensor([5.0, 0.0, 1.0]))
    prior.scale.copy_(torch.tensor([0.1, 2.0, 1.0]))
    return prior, torch.zeros(3, 3), torch.diag(prior.scale.square())


ALL = (standard_normal, gaussian_mixture, vamp, flow, two_stage)


@torch.no_grad()
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("make_prior", ALL)
def test_the_covariance_of_the_noise_grows_with_its_square(make_prior, temperature):
    prior, centres, noise = make_prior()
    z = prior.sample(N, generator(), temperature)
    z = z - z.mean(0)
    products = z[:, :, None] * z[:, None]
    error = products.std(0) / math.sqrt(N)
    assert ((products.mean(0) - centres - temperature**2 * noise).abs() < 4 * error).all()


def test_a_flow_with_networks_of_zero_scales_its_noise():
    prior, _, _ = flow()
    z = prior.sample(10, generator(), 0.7)
    noise = torch.randn(10, 3, dtype=torch.float64, generator=generator())
    # Each of the five layers reverses the order of the dimensions.
    torch.testing.assert_close(z, prior.mean + 0.7 * prior.scale * noise.flip(1))


@torch.no_grad()
def test_at_1_the_draws_are_those_of_the_distribution_itself():
    def randn(*shape, draws):
        return torch.randn(shape, dtype=torch.float64, generator=draws)

    prior, _, _ = standard_normal()
    assert torch.equal(prior.sample(7, generator()), randn(7, 3, draws=generator()))

    prior, _, _ = gaussian_mixture()
    draws = generator()
    chosen = torch.multinomial(prior.logits.softmax(0), 7, replacement=True, generator=draws)
    expected = prior.means[chosen] + (prior.cholesky[chosen] @ randn(7, 3, 1, draws=draws)).squeeze(-1)
    assert torch.equal(prior.sample(7, generator()), expected)

    prior, _, _ = vamp()
    draws, q = generator(), prior.mixture()
    chosen = torch.randint(4, (7,), generator=draws)
    expected = q.mean[chosen] + q.variance[chosen].sqrt() * randn(7, 3, draws=draws)
    torch.testing.assert_close(prior.sample(7, generator()), expected, rtol=0, atol=1e-14)

    prior, _, _ = flow()
    assert torch.equal(prior.sample(7, generator()), prior.inverse(randn(7, 3, draws=generator())))


@torch.no_grad()
@pytest.mark.parametrize("make_prior", ALL)
def test_the_same_for_the_same_generator_in_train_mode_too(make_prior):
    prior, _, _ = make_prior()
    z = prior.sample(7, generator())
    assert torch.equal(prior.train().sample(7, generator(), temperature=1.0), z)
    assert not torch.equal(prior.sample(7, generator(), temperature=0.5), z)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("make_prior", ALL)
def test_refuses_what_does_not_scale_noise(make_prior, temperature):
    prior, _, _ = make_prior()
    with pytest.raises(VaezooError, match=rf"temperature={temperature} is not valid, it must be above 0"):
        prior.sample(3, generator(), temperature)


def test_it_reaches_the_prior_through_the_model():
    torch.manual_seed(0)
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3)
    z = model.prior.sample(4, generator(), 0.7)
    images = model.sample(4, generator(), temperature=0.7)
    with torch.no_grad():
        assert torch.equal(images, model.decode(z).mean)
    assert not torch.equal(images, model.sample(4, generator()))


def test_options_that_the_prior_does_not_take_are_refused_by_name():
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3)
    with pytest.raises(VaezooError, match=r"sampling from StandardNormal 'top_k'.*temperature"):
        model.sample(4, top_k=5)
    with pytest.raises(VaezooError, match="'temprature'; did you mean 'temperature'"):
        model.sample(4, temprature=0.5)
    with pytest.raises(VaezooError, match=r"'labels'.*temperature"):
        model.sample(4, labels=3)
