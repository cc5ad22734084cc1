"""Oracle 9: the permutation, and a discriminator that knows the total correlation of a Gaussian. Trap 2."""

import math

import pytest
import torch

import vaezoo
from vaezoo import testing
from vaezoo.models.factor_vae import FactorVAE, permute_dimensions
from vaezoo.objective import Progress
from vaezoo.random import seeded

SMALL = {
    "image_shape": (1, 8, 8),
    "latent_dim": 3,
    "network_options": {"hidden": [16]},
    "discriminator_width": 16,
    "discriminator_depth": 2,
}


def small(**options):
    torch.manual_seed(0)
    return vaezoo.create("factor_vae", **{**SMALL, **options})


def losses(model, x, seed=0, step=0.0):
    with seeded(seed, "cpu"):
        return model.losses(x, Progress(torch.tensor(step), 1000, 1000))


# --- The permutation --------------------------------------------------------------------------------------


def test_the_permutation_keeps_each_column_and_breaks_the_rows():
    """Sorted columns stay bit-equal, and no value leaves its dimension."""
    z = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) + 100 * torch.arange(5)
    with seeded(0, "cpu"):
        permuted = permute_dimensions(z)
    assert torch.equal(permuted.sort(0).values, z.sort(0).values)
    # Where each value comes from: orders of their own, which move nearly everything.
    origin = torch.stack([(p[:, None] == c[None]).int().argmax(1) for p, c in zip(permuted.T, z.T)], 1)
    assert ((origin == torch.arange(200)[:, None]).float().mean(0) < 0.05).all()
    for a in range(5):
        for b in range(a):
            assert (origin[:, a] == origin[:, b]).float().mean() < 0.05, "two dimensions move together"


def test_the_permutation_is_uniform():
    """Every order of three images is as frequent as another, in each dimension and over two of them."""
    z = torch.arange(3.0)[:, None].expand(3, 2)
    with seeded(0, "cpu"):
        draws = torch.stack([permute_dimensions(z) for _ in range(7200)])
    powers = torch.tensor([9.0, 3.0, 1.0])
    keys = torch.stack([(draws[:, :, d] * powers).sum(1) for d in range(2)], 1)
    _, counts = keys.unique(dim=0, return_counts=True)
    assert len(counts) == 36
    chi_squared = ((counts - 200).square() / 200).sum().item()
    assert chi_squared < 66.6  # 0.999 quantile at 35 degrees of freedom


def test_the_permutation_removes_correlation_across_the_batch():
    noise = torch.Generator().manual_seed(0)
    first = torch.randn(20_000, generator=noise)
    z = torch.stack([first, first], 1)
    with seeded(0, "cpu"):
        correlation = torch.corrcoef(permute_dimensions(z).T)[0, 1]
    assert correlation.abs() < 4 / math.sqrt(20_000)


# --- The discriminator ------------------------------------------------------------------------------------


def test_the_discriminator_finds_the_total_correlation_of_a_gaussian():
    """-log(1 - rho^2) / 2 within .05, where it is trained by the model's own loss."""
    rho = 0.8
    torch.manual_seed(0)
    model = vaezoo.create(
        "factor_vae",
        image_shape=(1, 2, 2),
        latent_dim=2,
        discriminator_width=64,
        discriminator_depth=3,
    )
    noise = torch.Generator().manual_seed(0)

    def draw(n):
        e = torch.randn(n, 2, generator=noise)
        return torch.stack([e[:, 0], rho * e[:, 0] + math.sqrt(1 - rho**2) * e[:, 1]], 1)

    optimizer = torch.optim.Adam(model.parameter_groups()["discriminator"], lr=1e-3, betas=(0.5, 0.9))
    steps = 800
    with seeded(0, "cpu"):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * (1 - step / steps)
            optimizer.zero_grad()
            model.discriminate(draw(512), permute_dimensions(draw(512))).total.backward()
            optimizer.step()
    z = draw(100_000)
    with torch.no_grad():
        found = model.log_ratio(z).mean().item()
        # The cross-entropy falls below log 2, and the logged accuracy is above one half.
        loss = model.discriminate(z, permute_dimensions(draw(100_000)))
    assert found == pytest.approx(-math.log(1 - rho**2) / 2, abs=0.05)
    assert loss.total < math.log(2) - 0.05
    assert loss.terms["discriminator_accuracy"] > 0.6


def test_the_discriminator_is_that_of_the_paper():
    """Six layers of 1000 with leaky ReLU of slope .2, and two logits."""
    layers = list(vaezoo.create("factor_vae", latent_dim=10).discriminator)
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(10, 1000), *[(1000, 1000)] * 5, (1000, 2)]
    rest = [layer for layer in layers if not isinstance(layer, torch.nn.Linear)]
    assert len(rest) == 6
    assert all(isinstance(m, torch.nn.LeakyReLU) and m.negative_slope == 0.2 for m in rest)


def test_the_cross_entropy_is_that_of_two_logits():
    model = small()
    joint, product = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = [
        torch.nn.functional.cross_entropy(model.discriminator(z), torch.full((5,), label))
        for label, z in enumerate((joint, product))
    ]
    torch.testing.assert_close(model.discriminate(joint, product).total, torch.stack(expected).mean())


# --- Who learns from what ---------------------------------------------------------------------------------


def gradients(model, loss):
    found = {}
    for name, group in model.parameter_groups().items():
        values = torch.autograd.grad(loss.total, group, retain_graph=True, allow_unused=True)
        found[name] = [v for v in values if v is not None]
    return found


def test_neither_group_learns_from_the_others_loss():
    """Trap 2: no gradient at all from the discriminator's loss to the encoder, nor from the total correlation
    to the discriminator; the total correlation does reach the encoder."""
    model = small()
    found = losses(model, testing.images(model))
    from_model, from_critic = (gradients(model, found[name]) for name in ("model", "discriminator"))
    assert not from_model["discriminator"]
    assert not from_critic["model"]
    assert len(from_model["model"]) == len(model.parameter_groups()["model"])
    assert len(from_critic["discriminator"]) == len(model.parameter_groups()["discriminator"])
    plain = small(gamma=0)
    without = gradients(plain, losses(plain, testing.images(model))["model"])["model"]
    first, second = from_model["model"][0], without[0]
    assert first.shape == second.shape == model.encoder[1].weight.shape
    assert (first - second).abs().max() > 1e-3, "gamma changes nothing for the encoder"


def test_gamma_zero_is_the_vae():
    model = small(gamma=0)
    vae = vaezoo.create("vae", **{k: v for k, v in SMALL.items() if not k.startswith("disc")})
    vae.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("disc")})
    x = testing.images(model)
    a, b = losses(model, x)["model"], losses(vae, x)["model"]
    assert torch.equal(a.total, b.total)
    for name, parameter in vae.named_parameters():
        (theirs,) = torch.autograd.grad(b.total, parameter, retain_graph=True)
        (ours,) = torch.autograd.grad(a.total, model.get_parameter(name), retain_graph=True)
        assert torch.equal(theirs, ours)


def test_gamma_weighs_the_estimate():
    model = small(gamma=30, kl_warmup_steps=100)
    for step, ramp in ((0.0, 0.0), (50.0, 0.5), (500.0, 1.0)):
        loss = losses(model, testing.images(model), step=step)["model"]
        t = loss.terms
        expected = t["distortion"] + ramp * (t["rate"] + 30 * t["total_correlation"])
        torch.testing.assert_close(loss.total, expected)


def test_the_whole_batch_is_used_in_evaluation_as_in_training():
    """Trap 2: half-batch tricks. The discriminator sees every image once of each kind, in both modes, and the
    second kind is a draw of its own: it shares no value with the first."""
    model, seen = small(), []
    discriminate = model.discriminate
    model.discriminate = lambda *kinds: seen.append(kinds) or discriminate(*kinds)
    x = testing.images(model, 10)
    found = {mode: losses(model.train(mode), x) for mode in (True, False)}
    for name in ("model", "discriminator"):
        assert torch.equal(found[True][name].total, found[False][name].total)
    for joint, product in seen:
        assert joint.shape == product.shape == (10, 3)
        assert not joint.requires_grad
        assert not product.requires_grad
        assert not torch.isin(product, joint).any()
    with torch.no_grad():
        q = model.encode(x)
        expected = model.distortion(x, seen[1][0]).mean()
        torch.testing.assert_close(found[False]["model"].terms["distortion"], expected)
        torch.testing.assert_close(found[False]["model"].terms["rate"], q.kl_per_dimension().sum(1).mean())


def test_the_recipe_has_the_discriminators_own_options():
    from vaezoo.run import TrainConfig
    from vaezoo.trainer import make_optimizers, recipe

    optimizers = make_optimizers(small(), TrainConfig.parse(recipe(FactorVAE, "any"), "train"))
    options = {name: optimizer.param_groups[0] for name, optimizer in optimizers.items()}
    assert options["discriminator"]["lr"] == 1e-4
    assert tuple(options["discriminator"]["betas"]) == (0.5, 0.9)
    assert tuple(options["model"]["betas"]) == (0.9, 0.999)


def test_a_fitted_prior_belongs_to_neither_group():
    data = vaezoo.load_data(torch.randint(0, 255, (100, 1, 8, 8), dtype=torch.uint8))
    model = small()
    before = {name: [id(p) for p in group] for name, group in model.parameter_groups().items()}
    vaezoo.fit_prior(model, data, "gaussian_mixture", components=2, device="cpu")
    assert {name: [id(p) for p in group] for name, group in model.parameter_groups().items()} == before


def test_under_bfloat16_the_log_ratio_stays_in_float32():
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.discriminator(torch.randn(4, 3)).dtype == torch.bfloat16
        assert model.log_ratio(torch.randn(4, 3)).dtype == torch.float32
        found = losses(model, testing.images(model))
    assert all(loss.total.dtype == torch.float32 for loss in found.values())
