"""Oracle 2: a linear VAE with a learned noise level, trained by the trainer, finds probabilistic PCA."""

import math

import pytest
import torch

import vaezoo


def ppca(x, dims):
    """The greatest log-likelihood of pPCA of images x, in nats per image (Tipping & Bishop 1999, eq. 7, 8),
    that of other images under it, and its noise variance."""
    x = x.flatten(1).double()
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T.cov(correction=0))
    noise = values[:-dims].mean()
    kept = torch.cat([noise.expand(x.shape[1] - dims), values[-dims:]])

    def log_likelihood(images):
        squares = ((images.flatten(1).double() - mean) @ vectors).square().mean(0)
        return -0.5 * (math.log(2 * math.pi) + kept.log() + squares / kept).sum().item()

    return log_likelihood, noise.item()


def linear_vae(image_shape, dims):
    torch.manual_seed(0)
    options = {"network_options": {"hidden": []}, "likelihood": "gaussian_learned", "likelihood_scale": 0.1}
    return vaezoo.create("vae", image_shape=image_shape, latent_dim=dims, **options)


def elbo(model, x, draws=8):
    """Mean of the ELBO over images, nats, and the standard error that the draws of z leave."""
    torch.manual_seed(0)
    with torch.no_grad():
        q = model.encode(x)
        values = torch.stack([-model.distortion(x, q.rsample()) - model.rate(q, None) for _ in range(draws)])
    values = values.double()
    return values.mean().item(), (values.var(0).mean() / values.numel()).sqrt().item()


def test_the_trainer_takes_a_linear_vae_to_the_maximum_likelihood_of_ppca():
    noise = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 36, generator=noise) * torch.tensor([[0.12], [0.09], [0.06]])
    x = 0.5 + torch.randn(2000, 3, generator=noise) @ basis + 0.05 * torch.randn(2000, 36, generator=noise)
    data = vaezoo.load_data(x.clamp(0, 1).view(-1, 1, 6, 6), validation=200, test=200)
    train = data.train.batch(torch.arange(len(data.train)))
    log_likelihood, variance = ppca(train, 3)

    fewer, _ = ppca(train, 2)
    assert fewer(train) < log_likelihood(train) - 5, "every dimension counts"

    model = linear_vae(data.image_shape, 3)
    options = {"epochs": 200, "batch_size": 100, "lr": 3e-2, "lr_schedule": "cosine"}
    vaezoo.train(model, data, progress=False, device="cpu", **options)
    found, error = elbo(model, train)
    assert found == pytest.approx(log_likelihood(train), abs=0.3)
    assert found < log_likelihood(train) + 3 * error
    sigma = model.likelihood(torch.zeros(1, 1, 6, 6)).stddev.flatten()[0].item()
    assert sigma**2 == pytest.approx(variance, rel=0.03)
