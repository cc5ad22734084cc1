"""The VampPrior against the aggregate posterior that it is made to be."""

import math

import pytest
import torch

import vaezoo
from vaezoo import testing
from vaezoo.errors import VaezooError
from vaezoo.objective import Progress


def make(name="vae", components=6, **options):
    torch.manual_seed(0)
    return vaezoo.create(
        name,
        image_shape=(1, 8, 8),
        latent_dim=3,
        network_options={"hidden": [16]},
        prior="vamp",
        components=components,
        **options,
    )


def test_with_all_images_as_pseudo_inputs_it_is_the_aggregate_posterior():
    model = make().double()
    x = testing.images(model).double()
    with torch.no_grad():
        model.prior.pseudo_inputs.copy_(x)
        q, z = model.encode(x), torch.randn(20, 3, dtype=torch.float64)
        gaussians = torch.distributions.Normal(q.mean, q.variance.sqrt())
        each = gaussians.log_prob(z[:, None]).sum(-1)
        expected = each.exp().mean(1).log()
        torch.testing.assert_close(model.prior.log_prob(z), expected, rtol=0, atol=1e-10)


def test_density_integrates_to_one():
    model = make(components=3).double()
    model.decoder = None
    steps = torch.linspace(-8, 8, 81, dtype=torch.float64)
    with torch.no_grad():
        total = model.prior.log_prob(torch.cartesian_prod(steps, steps, steps)).exp().sum() * 0.2**3
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_samples_are_drawn_from_the_posteriors_that_were_trained():
    """Trap 8: the log-variance in sampling is that of training. Moments of a mixture of two far apart."""
    model = make(components=2).double()
    bias = [p for name, p in model.encoder.named_parameters() if name.endswith("bias")][-1]
    with torch.no_grad():
        bias[3:] = torch.tensor([-3.0, 0.0, 2.0])
        q = model.prior.mixture()
        mean = q.mean.mean(0)
        variance = (q.variance + q.mean.square()).mean(0) - mean.square()
    n = 100_000
    z = model.prior.sample(n, torch.Generator().manual_seed(0))
    assert ((z.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    fourth = (z - z.mean(0)).pow(4).mean(0)
    assert ((z.var(0) - variance).abs() < 4 * ((fourth - variance.square()) / n).sqrt()).all()


def test_rate_is_the_sampled_kl_and_reaches_encoder_and_pseudo_inputs():
    model = make()
    x = testing.images(model)
    loss = model.losses(x, Progress(torch.tensor(0.0), 1, 100))["model"]
    loss.total.backward()
    assert model.prior.pseudo_inputs.grad.abs().sum() > 0
    q = model.encode(x)
    z = q.sample()
    torch.testing.assert_close(model.rate(q, z), q.log_prob(z) - model.prior.log_prob(z))


def test_pseudo_inputs_start_at_training_images_and_train_with_the_model(tmp_path):
    data = vaezoo.load_data("digits")
    model = make(components=50)
    model.initialize(data.train.batch(torch.arange(30)))
    images = data.train.batch(torch.arange(30)).flatten(1)
    distances = torch.cdist(model.prior.pseudo_inputs.detach().flatten(1), images)
    assert distances[:30].min(1).values.max() < 1e-2
    assert distances.min(0).values.max() < 1e-2, "not all images were used"
    assert distances[30:].min(1).values.max() < 1.2, "noise of 0.1 on each of 64 pixels is 0.8"
    vaezoo.train(model, data, epochs=1, progress=False)
    assert torch.cdist(model.prior.pseudo_inputs.detach().flatten(1), images).min(1).values.max() > 1e-2
    vaezoo.save(model, tmp_path / "vamp.safetensors")
    again = vaezoo.load(tmp_path / "vamp.safetensors")
    same = (m.sample(4, torch.Generator().manual_seed(0)) for m in (model, again))
    assert torch.equal(*same)


def test_density_is_the_same_in_blocks_and_with_components_that_are_far(monkeypatch):
    """Components whose densities are e^-1000 of the largest, in blocks that do not divide the latents."""
    model = make().double()
    model.prior.pseudo_inputs.data.mul_(torch.tensor([0, 0.1, 1, 1, 1, 1]).view(6, 1, 1, 1))
    [p for name, p in model.encoder.named_parameters() if name.endswith("weight")][-1].data[:3] *= 300
    z = model.prior.mixture().mean.detach().repeat(3, 1) + torch.randn(18, 3, dtype=torch.float64)
    q = model.prior.mixture()
    each = q.log_prob(z.unsqueeze(1))
    assert (each.amax(1) - each.amin(1)).max() > 1000
    monkeypatch.setattr("vaezoo.priors.vamp.BLOCK", 7)
    expected = each.logsumexp(1) - math.log(6)
    found = model.prior.log_prob(z)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)
    parameters = [*model.encoder.parameters(), model.prior.pseudo_inputs]
    for own, other in zip(*(torch.autograd.grad(value.sum(), parameters) for value in (found, expected))):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_pseudo_inputs_that_start_at_the_same_image_part():
    """With more of them than images to start at: copies would have the same gradients, and stay copies."""
    model = make(components=20)
    model.initialize(testing.images(model)[:4])
    u = model.prior.pseudo_inputs
    model.prior.log_prob(torch.randn(5, 3)).sum().backward()
    gradients = u.grad[4:].flatten(1)  # those that have no image of their own
    assert torch.pdist(gradients).min() > 1e-3 * gradients.norm(dim=1).mean()


def test_pseudo_inputs_of_binary_images_can_move():
    """Pixels at 0 and 1 follow their gradient inside, and those that a step has led outside come back."""
    model = make().double()
    u = model.prior.pseudo_inputs
    start = torch.tensor([0.0, 1.0, -0.1, 1.1, 0.5, 0.0], dtype=torch.float64).view(6, 1, 1, 1)
    x = start.clamp(0, 1).expand_as(u).clone().requires_grad_()
    with torch.no_grad():
        u.copy_(start.expand_as(u))
    z = torch.randn(20, 3, dtype=torch.float64)
    model.prior.log_prob(z).sum().backward()
    q = model.encode(x)
    q.log_prob(z.unsqueeze(1)).logsumexp(1).sum().backward()
    step = -x.grad
    outside = ((u < 0) & (step < 0)) | ((u > 1) & (step > 0))
    assert 0 < outside.sum() < (u != u.clamp(0, 1)).sum(), "some must lead further outside, some back"
    torch.testing.assert_close(u.grad, torch.where(outside, 0.0, x.grad), rtol=1e-9, atol=1e-12)


def test_a_copy_asks_its_own_encoder():
    import copy

    model = make()
    z = torch.zeros(1, 3)
    other = copy.deepcopy(model)
    before = model.prior.log_prob(z)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    assert torch.equal(other.prior.log_prob(z), before)
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    torch.testing.assert_close(model.prior.log_prob(z), expected)
    assert math.isfinite(before.item())


@pytest.mark.parametrize("name", ["beta_vae", "beta_tc_vae", "factor_vae", "conv_vae"])
def test_every_vae_takes_it(name):
    options = {"network_options": {"channels": [8, 8], "hidden": 16}} if name == "conv_vae" else {}
    model = vaezoo.create(name, image_shape=(1, 8, 8), latent_dim=3, prior="vamp", components=4, **options)
    x = testing.images(model)
    assert all(
        loss.total.isfinite() for loss in model.losses(x, Progress(torch.tensor(0.0), 1, 100)).values()
    )
    assert model.sample(3).shape == (3, 1, 8, 8)


def test_it_cannot_be_fitted_afterwards():
    data = vaezoo.load_data("digits")
    model = vaezoo.create("ae", image_shape=(1, 8, 8))
    with pytest.raises(VaezooError, match="trains with it, so it cannot be fitted afterwards"):
        vaezoo.fit_prior(model, data, "vamp")
