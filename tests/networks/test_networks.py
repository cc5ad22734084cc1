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


def test_gated_is_the_published_one():
    """Tomczak & Welling 2018: 784-300-300 and mirrored, two layers for each gate, linear outputs."""
    gated = NETWORKS.get("gated")
    encoder = gated(gated.Config()).encoder((1, 28, 28), 80)
    widths = [(m.in_features, m.out_features) for m in encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert widths == [(784, 300)] * 2 + [(300, 300)] * 2 + [(300, 80)]
    decoder = gated(gated.Config()).decoder(40, (1, 28, 28))
    widths = [(m.in_features, m.out_features) for m in decoder.modules() if isinstance(m, torch.nn.Linear)]
    assert widths == [(40, 300)] * 2 + [(300, 300)] * 2 + [(300, 784)]


def test_gated_layers_against_the_formula():
    """(W h + b) * sigmoid(V h + c), twice, then a linear layer."""
    gated = NETWORKS.get("gated")
    encoder = gated(gated.Config(hidden=(5, 4))).encoder((1, 2, 3), 2).double()
    w1, b1, v1, c1, w2, b2, v2, c2, w3, b3 = encoder.parameters()
    x = torch.randn(7, 1, 2, 3, dtype=torch.float64)
    h = x.flatten(1)
    for w, b, v, c in ((w1, b1, v1, c1), (w2, b2, v2, c2)):
        h = (h @ w.T + b) / (1 + torch.exp(-(h @ v.T + c)))
    torch.testing.assert_close(encoder(x), h @ w3.T + b3, rtol=0, atol=1e-12)


def test_gated_weights_start_from_he_normal():
    """N(0, 2 / inputs) of every layer, the outputs included: variance and kurtosis within five standard
    errors, and the biases uniform within 1 / sqrt(inputs), as torch has them."""
    torch.manual_seed(0)
    gated = NETWORKS.get("gated")
    network = gated(gated.Config())
    nets = (network.encoder((1, 28, 28), 80), network.decoder(40, (1, 28, 28)))
    for linear in (m for net in nets for m in net.modules() if isinstance(m, torch.nn.Linear)):
        w = linear.weight.detach().double() * (linear.in_features / 2) ** 0.5
        n = w.numel()
        assert abs(w.square().mean() - 1) < 5 * (2 / n) ** 0.5
        assert abs(w.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
        assert 0.5 < linear.bias.detach().abs().max() * linear.in_features**0.5 <= 1


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
