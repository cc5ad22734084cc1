"""The loss is the negative ELBO in nats per image; variants change one term of it."""

import math

import pytest
import torch

import vaezoo
from vaezoo import testing
from vaezoo.objective import Progress
from vaezoo.random import seeded


def at(step, total=1000):
    return Progress(torch.tensor(float(step)), total, 100)


def losses(model, x, progress, seed=0):
    with seeded(seed, "cpu"):
        return model.losses(x, progress)["model"]


def test_loss_is_distortion_plus_rate_summed_over_the_image():
    """Trap 3: written out from the encoder's and decoder's raw outputs, with sums over pixels and latents."""
    model = vaezoo.create("vae").double()
    x = testing.images(model).double()
    loss = losses(model, x, at(0))
    mean, log_variance = model.encoder(x).chunk(2, 1)
    with seeded(0, "cpu"):
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    probability = torch.sigmoid(model.decoder(z))
    cross_entropy = -(x * probability.log() + (1 - x) * (1 - probability).log()).sum((1, 2, 3))
    kl = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1)
    torch.testing.assert_close(loss.total, (cross_entropy + kl).mean(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss.terms["distortion"], cross_entropy.mean())
    torch.testing.assert_close(loss.terms["rate"], kl.mean())
    torch.testing.assert_close(loss.terms["elbo"], -loss.total.detach(), check_dtype=False)


def test_beta_one_is_the_vae():
    torch.manual_seed(0)
    vae, beta = vaezoo.create("vae"), vaezoo.create("beta_vae", beta=1)
    beta.load_state_dict(vae.state_dict())
    x = testing.images(vae)
    assert torch.equal(losses(vae, x, at(0)).total, losses(beta, x, at(0)).total)


def test_beta_weighs_the_rate():
    model = vaezoo.create("beta_vae", beta=4)
    loss = losses(model, testing.images(model), at(0))
    expected = loss.terms["distortion"] + 4 * loss.terms["rate"]
    torch.testing.assert_close(loss.total, expected)


def test_capacity_rises_linearly_and_stays():
    """Burgess et al. 2018, eq. 8."""
    model = vaezoo.create("beta_vae", beta=10, capacity=25, capacity_steps=100)
    x = testing.images(model)
    for step, capacity in ((0, 0.0), (50, 12.5), (100, 25.0), (900, 25.0)):
        loss = losses(model, x, at(step))
        expected = loss.terms["distortion"] + 10 * (loss.terms["rate"] - capacity).abs()
        torch.testing.assert_close(loss.total, expected)


def test_warmup_weighs_the_whole_penalty():
    """w beta |rate - C|, not beta |w rate - C|, which would drive the rate to C / w."""
    model = vaezoo.create("beta_vae", beta=10, capacity=25, capacity_steps=1, kl_warmup_steps=200)
    loss = losses(model, testing.images(model), at(50))
    expected = loss.terms["distortion"] + 0.25 * 10 * (loss.terms["rate"] - 25).abs()
    torch.testing.assert_close(loss.total, expected)


def test_kl_warmup():
    model = vaezoo.create("vae", kl_warmup_steps=200)
    x = testing.images(model)
    for step, weight in ((0, 0.0), (50, 0.25), (200, 1.0), (999, 1.0)):
        loss = losses(model, x, at(step))
        torch.testing.assert_close(loss.total, loss.terms["distortion"] + weight * loss.terms["rate"])


def test_log_variances_are_bounded():
    model = vaezoo.create("vae", latent_dim=3, network_options={"hidden": []}, log_variance_bounds=(-6, 2))
    with torch.no_grad():
        model.encoder[1].weight.zero_()
        model.encoder[1].bias.copy_(torch.tensor([9.0, -9.0, 0.0, -7.0, 3.0, 0.5]))
        q = model.encode(torch.rand(2, 1, 28, 28))
    assert q.log_variance.tolist() == [[-6.0, 2.0, 0.5]] * 2
    assert q.mean.tolist() == [[9.0, -9.0, 0.0]] * 2
    for bounds in ((2, -6), (1, 1)):
        with pytest.raises(vaezoo.VaezooError, match="smallest must be below the largest"):
            vaezoo.create("vae", log_variance_bounds=bounds)


def test_distortion_is_unbiased_for_a_linear_model():
    """For linear maps and a Gaussian likelihood E[distortion] has a closed form; the samples meet it."""
    torch.manual_seed(0)
    model = vaezoo.create(
        "vae",
        image_shape=(1, 2, 2),
        latent_dim=2,
        network_options={"hidden": []},
        likelihood="gaussian",
        likelihood_scale=0.5,
    ).double()
    x = torch.rand(1, 1, 2, 2).double()
    q = model.encode(x)
    weight, bias = model.decoder[0].weight, model.decoder[0].bias
    residual = x.flatten() - (weight @ q.mean[0] + bias)
    spread = (weight.square() @ q.variance[0]).sum()
    expected = 2 * math.log(2 * math.pi * 0.25) + (residual.square().sum() + spread) / 0.5
    with torch.no_grad():
        values = model.distortion(x.expand(200_000, 1, 2, 2), q.sample((200_000,))[:, 0])
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(len(values))


def test_own_modules():
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    decoder = torch.nn.Sequential(torch.nn.Linear(5, 784), torch.nn.Unflatten(1, (1, 28, 28)))
    model = vaezoo.create("vae", latent_dim=5, encoder=encoder, decoder=decoder)
    assert model.encoder is encoder
    assert model.sample(3).shape == (3, 1, 28, 28)
    assert model.sample(0).shape == (0, 1, 28, 28)
    wrong = vaezoo.create("vae", latent_dim=6, encoder=encoder)
    with pytest.raises(vaezoo.VaezooError, match=r"latent_dim=6 needs \(batch, 12\)"):
        wrong.reconstruct(torch.rand(2, 1, 28, 28))
