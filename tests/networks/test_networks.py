import pytest
import torch

from vaezoo.errors import VaezooError
from vaezoo.networks import NETWORKS


@pytest.mark.parametrize("name", NETWORKS.names())
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 64, 64), (3, 48, 64)])
def test_shapes(name, shape):
    network = NETWORKS.get(name)(NETWORKS.get(name).Config())
    x = torch.randn(2, *shape)
    h = network.encoder(shape, 7)(x)
    assert h.shape == (2, 7)
    assert network.decoder(7, (6, *shape[1:]))(h).shape == (2, 6, *shape[1:])


def test_mlp_is_the_published_one():
    """784-512-256, mirrored (the seed of the zoo)."""
    mlp = NETWORKS.get("mlp")
    encoder = mlp(mlp.Config()).encoder((1, 28, 28), 40)
    widths = [(m.in_features, m.out_features) for m in encoder if isinstance(m, torch.nn.Linear)]
    assert widths == [(784, 512), (512, 256), (256, 40)]
    decoder = mlp(mlp.Config()).decoder(20, (1, 28, 28))
    widths = [(m.in_features, m.out_features) for m in decoder if isinstance(m, torch.nn.Linear)]
    assert widths == [(20, 256), (256, 512), (512, 784)]


def test_conv_at_64_pixels_is_the_published_one():
    """Locatello et al. 2019, table 1: 32-32-64-64, 4x4 with stride 2, fc 256; decoder fc 256, fc 1024."""
    conv = NETWORKS.get("conv")
    encoder = conv(conv.Config()).encoder((1, 64, 64), 20)
    layers = [(m.out_channels, m.kernel_size, m.stride) for m in encoder if isinstance(m, torch.nn.Conv2d)]
    assert layers == [(c, (4, 4), (2, 2)) for c in (32, 32, 64, 64)]
    assert [m.out_features for m in encoder if isinstance(m, torch.nn.Linear)] == [256, 20]
    decoder = conv(conv.Config()).decoder(10, (1, 64, 64))
    assert [m.out_features for m in decoder if isinstance(m, torch.nn.Linear)] == [256, 1024]
    layers = [(m.out_channels, m.stride) for m in decoder if isinstance(m, torch.nn.ConvTranspose2d)]
    assert layers == [(c, (2, 2)) for c in (64, 32, 32, 1)]


@pytest.mark.parametrize(("name", "multiple"), [("conv", "multiples of 4"), ("resnet", "multiples of 4")])
def test_sizes_that_cannot_be_halved_are_refused(name, multiple):
    network = NETWORKS.get(name)(NETWORKS.get(name).Config())
    for build in (network.encoder, lambda shape, features: network.decoder(features, shape)):
        with pytest.raises(VaezooError, match=multiple):
            build((1, 30, 28), 5)
