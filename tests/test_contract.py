"""The contract, over everything that is registered: a new model is tested by existing."""

from __future__ import annotations

import pytest
import torch

import vaezoo
import vaezoo.testing
from vaezoo.likelihoods import LIKELIHOODS
from vaezoo.networks import NETWORKS

CHECKS = pytest.mark.parametrize("check", vaezoo.testing.CHECKS, ids=lambda check: check.__name__)
MODELS = pytest.mark.parametrize("name", vaezoo.list_models())

#: Likelihoods whose mean stays where images are.
BOUNDED = ("bernoulli", "continuous_bernoulli", "logistic_mixture")

#: Narrow networks, so that a combination takes milliseconds.
NARROW = {
    "mlp": {"hidden": [32]},
    "gated": {"hidden": [32]},
    "conv": {"channels": [8, 8], "hidden": 16},
    "resnet": {"channels": [8, 8]},
}
NARROW_VQ = {"codes": 16, "code_dim": 8, "channels": 16, "residual_channels": 8}


@MODELS
@CHECKS
def test_contract(name, check):
    check(lambda: vaezoo.create(name))


@pytest.mark.cuda
@MODELS
@CHECKS
def test_contract_on_cuda(name, check):
    check(lambda: vaezoo.create(name).cuda())


def assert_trains(model):
    """Finite losses, a finite gradient for every parameter, reconstructions of the images' shape."""
    x = vaezoo.testing.images(model, 3)
    model.train()
    torch.stack([loss.total for loss in vaezoo.testing.losses(model, x).values()]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
    mean = model.reconstruct(x)
    assert mean.shape == x.shape
    assert mean.isfinite().all()
    return mean


@pytest.mark.parametrize("name", ["vae", "ae"])
@pytest.mark.parametrize("network", NETWORKS.names())
@pytest.mark.parametrize("likelihood", LIKELIHOODS.names())
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_goes_with_every_likelihood(name, network, likelihood, channels):
    model = vaezoo.create(
        name,
        image_shape=(channels, 16, 16),
        latent_dim=3,
        network=network,
        network_options=NARROW.get(network, {}),
        likelihood=likelihood,
    )
    mean = assert_trains(model)
    if likelihood in BOUNDED:
        assert mean.min() >= 0
        assert mean.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv_vae", {}),
        ("vae", {"network": "resnet"}),
        ("vae", {"network": "gated", "log_variance_bounds": (-6.0, 2.0)}),
        ("vq_vae", NARROW_VQ),
        ("vq_vae", {**NARROW_VQ, "ema": False, "downsample": 2, "residual_blocks": 0}),
        ("vq_vae2", NARROW_VQ),
    ],
    ids=["conv_vae", "resnet", "gated", "vq_vae", "vq_vae-by-gradient", "vq_vae2"],
)
def test_image_sizes(name, options, size, channels):
    assert_trains(vaezoo.create(name, image_shape=(channels, size, size), **options))


@pytest.mark.parametrize(("size", "downsample"), [((32, 32), 2), ((64, 64), 4), ((16, 48), 2)])
def test_vq_vae2_with_three_levels(size, downsample):
    model = vaezoo.create("vq_vae2", image_shape=(3, *size), levels=3, downsample=downsample, **NARROW_VQ)
    assert_trains(model)
    height, width = size
    grids = [(height // f, width // f) for f in (4 * downsample, 2 * downsample, downsample)]
    assert model.latent.shapes == tuple(grids)
    codes = model.latents(vaezoo.testing.images(model, 2))
    assert [tuple(level.shape) for level in codes] == [(2, *grid) for grid in grids]


@CHECKS
def test_contract_with_a_prior_that_trains_with_the_model(check):
    check(lambda: vaezoo.create("vae", prior="vamp", components=7))


@CHECKS
def test_contract_of_three_levels(check):
    check(lambda: vaezoo.create("vq_vae2", image_shape=(1, 8, 16), levels=3, **NARROW_VQ))


def test_images_that_are_not_square():
    """Images that are not square go through every network."""
    for network in NETWORKS.names():
        options = NARROW.get(network, {})
        assert_trains(vaezoo.create("vae", image_shape=(1, 8, 24), network=network, network_options=options))
