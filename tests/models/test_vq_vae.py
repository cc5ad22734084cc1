"""VQ-VAE and VQ-VAE-2: gradients of each term (oracle 11), units, hierarchy; traps 5 and 6."""

import pytest
import torch

import vaezoo
from vaezoo import testing
from vaezoo.errors import NotFittedError, VaezooError
from vaezoo.priors import PRIORS


def small(name="vq_vae", **options):
    torch.manual_seed(0)
    return vaezoo.create(
        name,
        **{
            "image_shape": (1, 16, 16),
            "codes": 16,
            "code_dim": 4,
            "channels": 8,
            "residual_channels": 4,
            **options,
        },
    )


def test_commitment_gradient():
    """2 beta (z_e - e), nothing else, when the distortion is left out; summed over an image."""
    model = small().eval()
    x = testing.images(model)
    z = model.encoder(x).detach().requires_grad_()
    q = model.codebooks[0](z)
    loss = model.config.commitment * (z - q.vectors.detach()).square().sum() / len(x)
    (expected,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(expected, 2 * 0.25 * (z - q.vectors) / len(x))
    terms = model.losses(x, testing.progress(model))["model"].terms
    assert terms["commitment"].item() == pytest.approx(loss.item() / 0.25, rel=1e-5)


def test_loss_terms_are_summed_over_the_image_and_averaged_over_the_batch():
    """Trap 6: VQ losses summed over the batch, or averaged over positions, beside another reduction."""
    model = small().eval()
    x = testing.images(model)
    once = model.losses(x, testing.progress(model))["model"]
    twice = model.losses(torch.cat([x, x]), testing.progress(model))["model"]
    torch.testing.assert_close(once.total, twice.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(once.total, once.terms["distortion"] + 0.25 * once.terms["commitment"])


@pytest.mark.parametrize("ema", [True, False])
def test_which_term_moves_what(ema):
    """The codebook term sends nothing to the encoder; with EMA the codebook gets no gradient at all."""
    model = small(ema=ema)
    x = testing.images(model)
    q = model.encode(x)
    if ema:
        assert not any("codebooks" in name for name, _ in model.named_parameters())
        return
    codebook_term = (q.encoded.detach() - q.vectors).square().sum()
    gradients = torch.autograd.grad(
        codebook_term, [*model.encoder.parameters(), model.codebooks[0].vectors], allow_unused=True
    )
    assert all(g is None for g in gradients[:-1])
    assert gradients[-1].abs().sum() > 0
    loss = model.losses(x, testing.progress(model))["model"]
    (full,) = torch.autograd.grad(loss.total, model.codebooks[0].vectors)
    torch.testing.assert_close(full, gradients[-1] / len(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vq_vae", "vq_vae2"])
def test_the_decoder_reads_codes_alone(name):
    """Trap 6: decoding the codes gives exactly what decoding the straight-through sample gives."""
    model = small(name).eval()
    x = testing.images(model)
    with torch.no_grad():
        q = model.encode(x)
        assert torch.equal(model.decode(q.rsample()).mean, model.decode(q.draw()).mean)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 24), (1, 32, 4)])
def test_any_grid_size(shape):
    model = small(image_shape=shape)
    x = testing.images(model, 2)
    assert model.reconstruct(x).shape == x.shape
    assert model.latent.shapes == ((shape[1] // 4, shape[2] // 4),)


def test_levels_have_their_own_resolution():
    model = small("vq_vae2", levels=3)
    assert model.latent.shapes == ((2, 2), (4, 4), (8, 8))
    z = model.latents(testing.images(model, 2))
    assert [tuple(level.shape) for level in z] == [(2, 2, 2), (2, 4, 4), (2, 8, 8)]


def test_bottom_is_encoded_from_the_decoded_top():
    """Razavi et al. 2019, algorithm 1: other top codes give another bottom input for the same image."""
    model = small("vq_vae2").eval()
    x = testing.images(model, 4)
    before = model.encode(x).factors[1].encoded
    with torch.no_grad():
        model.codebooks[0].vectors.add_(1.0)
    after = model.encode(x).factors[1].encoded
    assert not torch.allclose(before, after)


def test_the_decoder_reads_both_levels():
    model = small("vq_vae2").eval()
    top, bottom = model.latents(testing.images(model, 4))
    image = model.decode((top, bottom)).mean
    assert not torch.equal(model.decode(((top + 1) % 16, bottom)).mean, image)
    assert not torch.equal(model.decode((top, (bottom + 1) % 16)).mean, image)


def test_codebook_follows_training_and_stays_in_evaluation():
    model = small()
    x = testing.images(model, 16)
    model.initialize(x)
    before = model.codebooks[0].vectors.clone()
    model.eval()
    model.losses(x, testing.progress(model))
    assert torch.equal(model.codebooks[0].vectors, before)
    model.train()
    for _ in range(3):
        model.losses(x, testing.progress(model))
    model.encoder[-1].bias.data.add_(1.0)
    model.losses(x, testing.progress(model))
    assert not torch.equal(model.codebooks[0].vectors, before)


def test_k_means_start_uses_the_codebook():
    started, raw = small(), small()
    x = testing.images(started, 64)
    started.initialize(x)
    perplexities = [
        m.eval().losses(x, testing.progress(m))["model"].terms["perplexity"] for m in (started, raw)
    ]
    assert perplexities[0] > 2 * perplexities[1]


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(vaezoo.VaezooError, match="multiples of 4, not 30x30"):
        small(image_shape=(1, 30, 30))
    with pytest.raises(vaezoo.VaezooError, match="multiples of 8"):
        small("vq_vae2", image_shape=(1, 28, 28), levels=3)
    with pytest.raises(vaezoo.VaezooError, match="downsample=6 is not valid"):
        small(downsample=6)


@pytest.mark.parametrize("name", ["vq_vae", "vq_vae2"])
def test_inpainting(name):
    """All of an image as a hole is a sample, none the image; what was in a hole does not matter."""
    model = small(name).eval()
    testing.attach_prior(model)
    x = testing.images(model)

    def inpaint(images, hole):
        return model.inpaint(images, hole, torch.Generator().manual_seed(0))

    everything = torch.ones(16, 16, dtype=torch.bool)
    sampled = model.sample(len(x), torch.Generator().manual_seed(0))
    torch.testing.assert_close(inpaint(x, everything), sampled)
    assert torch.equal(inpaint(x, ~everything), x)
    hole = torch.zeros_like(everything)
    hole[8:, 4:10] = True
    drawn = inpaint(x, hole)
    assert torch.equal(drawn[:, :, ~hole], x[:, :, ~hole])
    assert torch.equal(inpaint(torch.where(hole, 1 - x, x), hole), drawn)


def test_inpainting_says_what_it_needs():
    model = small().eval()
    testing.attach_prior(model)
    x = testing.images(model)
    with pytest.raises(VaezooError, match=r"hole must be bool \[16, 16\]"):
        model.inpaint(x, torch.zeros(8, 8, dtype=torch.bool))
    with pytest.raises(VaezooError, match="unknown option of inpainting 'candidate'; did you mean"):
        model.inpaint(x, torch.zeros(16, 16, dtype=torch.bool), candidate=2)
    model.prior = None
    with pytest.raises(NotFittedError, match="fit_prior"):
        model.inpaint(x, torch.zeros(16, 16, dtype=torch.bool))


def test_each_of_many_samples_gets_its_own_label(monkeypatch):
    """Samples are drawn some at a time; labels go with them, and are as many."""
    model = small().eval()
    prior = PRIORS.get("pixelcnn")
    model.prior = prior(prior.Config(classes=4, width=2, layers=1), model.latent)
    seen = []
    draw = type(model.prior).sample
    monkeypatch.setattr(
        model.prior,
        "sample",
        lambda n, g, *, labels: seen.append(labels) or draw(model.prior, n, g, labels=labels),
    )
    labels = torch.arange(300) % 4
    assert len(model.sample(300, labels=labels)) == 300
    assert torch.equal(torch.cat(seen), labels)
    for wrong in (labels[:10], labels.repeat(2)):
        with pytest.raises(VaezooError, match="labels must be 300 integers"):
            model.sample(300, labels=wrong)
