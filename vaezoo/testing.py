"""The contract, as checks that any model must pass. For plug-in authors:

    import pytest, vaezoo, vaezoo.testing

    @pytest.mark.parametrize("check", vaezoo.testing.CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(lambda: vaezoo.create("my_model"))

Each check takes a function that makes a fresh model, and raises AssertionError with what is wrong. What the
checks draw at random, the model's start included, is the same in every run.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from vaezoo.autoencoder import Autoencoder, Latent
from vaezoo.checkpoint import load, save
from vaezoo.errors import NotFittedError
from vaezoo.objective import Loss, Progress
from vaezoo.priors import PRIORS
from vaezoo.random import generator, seeded

Make = Callable[[], Autoencoder]

BATCH = 6

#: Options that make a prior quick to sample from.
SMALL_PRIORS = {"transformer": {"width": 16, "depth": 1, "heads": 2}}


def images(model: Autoencoder, n: int = BATCH, seed: int = 0) -> Tensor:
    """Grey-level images with structure: a random soft disc on a dim ground, [n, C, H, W]."""
    device = next(model.parameters()).device
    channels, height, width = model.config.image_shape
    noise = generator(seed, "cpu")
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    centre, radius = (
        torch.rand(n, 2, 1, 1, generator=noise) - 0.5,
        0.2 + 0.4 * torch.rand(n, 1, 1, generator=noise),
    )
    distance = ((y - centre[:, 0]).square() + (x - centre[:, 1]).square()).sqrt()
    colour = 0.3 + 0.7 * torch.rand(n, channels, 1, 1, generator=noise)
    return (colour * torch.sigmoid(20 * (radius - distance)).unsqueeze(1)).to(device)


def fresh(make: Make) -> Autoencoder:
    """A model whose start depends on nothing but its class."""
    with seeded(0, "cpu"):
        return make()


def progress(model: Autoencoder) -> Progress:
    return Progress(
        torch.zeros((), device=next(model.parameters()).device), total_steps=100, dataset_size=1000
    )


def losses(model: Autoencoder, x: Tensor, seed: int = 0) -> dict[str, Loss]:
    with seeded(seed, x.device):
        return model.losses(x, progress(model))


def levels(z: Latent) -> tuple[Tensor, ...]:
    return z if isinstance(z, tuple) else (z,)


def check_config_is_json(make: Make) -> None:
    """The config goes through JSON and comes back equal; every field says what it means."""
    config = fresh(make).config
    again = type(config).model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config, f"{config} came back from JSON as {again}"
    for name, field in type(config).model_fields.items():
        assert field.description, f"config field '{name}' has no description"


def check_documented(make: Make) -> None:
    """The class has a docstring and names its paper."""
    model = type(fresh(make))
    assert model.__doc__, f"{model.__name__} has no docstring"
    assert model.paper, f"{model.__name__}.paper is empty"


def check_distributions(make: Make) -> None:
    """`encode` and `decode` return distributions; log p(x|z) is one finite number for each image."""
    model = fresh(make)
    x = images(model)
    q = model.encode(x)
    assert isinstance(q, Distribution), f"encode returns {type(q).__name__}, not a torch Distribution"
    p = model.decode(q.rsample())
    assert isinstance(p, Distribution), f"decode returns {type(p).__name__}, not a torch Distribution"
    log_prob = p.log_prob(x)
    assert log_prob.shape == (BATCH,), (
        f"decode(z).log_prob(x) has shape {tuple(log_prob.shape)}, not ({BATCH},)"
    )
    assert log_prob.isfinite().all(), "decode(z).log_prob(x) is not finite"
    assert p.event_shape == x.shape[1:], (
        f"decode(z) has the event shape {tuple(p.event_shape)}, but it is to be a distribution over whole "
        f"images {tuple(x.shape[1:])}, whose log_prob sums over their pixels"
    )
    assert p.mean.shape == x.shape, (
        f"decode(z).mean has shape {tuple(p.mean.shape)} for images {tuple(x.shape)}"
    )


def check_images_are_independent(make: Make) -> None:
    """An image's latent and distortion do not depend on the rest of its batch."""
    model = fresh(make).eval()
    x = images(model)
    together = levels(model.represent(x))
    alone = [torch.cat(level) for level in zip(*(levels(model.represent(one)) for one in x.split(1)))]
    for z, expected in zip(together, alone):
        same = (z - expected).abs() <= 0.01 * z.std()
        # Not all: a code on the border of two may change with the last bits.
        assert same.float().mean() > 0.99, "represent(x) of an image depends on the rest of its batch"
    with torch.no_grad():
        whole = model.distortion(x, model.represent(x))
        single = torch.cat([model.distortion(one, model.represent(one)) for one in x.split(1)])
    assert torch.allclose(whole, single, rtol=1e-2, atol=1e-1), f"in a batch {whole}, alone {single}"


def check_losses(make: Make) -> None:
    """Losses are finite scalars of known parameter groups, with scalar terms, and follow from the seed."""
    model = fresh(make)
    x = images(model)
    for name, loss in losses(model, x).items():
        assert name in model.parameter_groups(), f"loss '{name}' has no parameter group"
        assert loss.total.shape == (), f"loss '{name}' has shape {tuple(loss.total.shape)}, not a scalar"
        assert loss.total.isfinite(), f"loss '{name}' is {loss.total}"
        assert all(v.shape == () and v.isfinite() for v in loss.terms.values()), (
            f"terms of '{name}': {loss.terms}"
        )
    first, second = (losses(copy.deepcopy(model), x, seed=3) for _ in range(2))
    for name in first:
        assert torch.equal(first[name].total, second[name].total), (
            f"loss '{name}' differs under the same seed"
        )


def check_units(make: Make) -> None:
    """Losses are nats per image: summed over pixels, averaged over the batch."""
    model = fresh(make)
    x = images(model, 32)
    found = losses(model, x)
    terms = {name: value for loss in found.values() for name, value in loss.terms.items()}
    assert "distortion" in terms, (
        f"no loss has a term 'distortion', -log p(x|z) in nats; there is {list(terms)}"
    )
    model.eval()
    with torch.no_grad(), seeded(0, x.device):
        expected = model.distortion(x, model.encode(x).rsample())
    spread = 0.1 * expected.abs().mean() + 3 * expected.std()
    assert (terms["distortion"] - expected.mean()).abs() < spread, (
        f"the term 'distortion' is {terms['distortion']:.4g}, "
        f"but -log p(x|z) is {expected.mean():.4g} nats per image"
    )
    twice = losses(model, torch.cat([x, x]))
    for name, loss in losses(model, x).items():
        once, both = loss.total.item(), twice[name].total.item()
        assert abs(both - once) < 0.25 * abs(once) + 0.3, (
            f"loss '{name}' is {once:.4g}, and {both:.4g} on each image twice: it is no average"
        )


def check_parameter_groups(make: Make) -> None:
    """The groups split the parameters: disjoint and complete."""
    model = fresh(make)
    listed = [id(p) for group in model.parameter_groups().values() for p in group]
    assert len(listed) == len(set(listed)), "parameter groups share parameters"
    assert set(listed) == {id(p) for p in model.parameters()}, "parameter groups are not all the parameters"


def check_gradients(make: Make) -> None:
    """Every parameter gets a gradient, and each group's comes from its own loss alone."""
    model = fresh(make).train()
    x = images(model)
    groups = model.parameter_groups()
    total = {name: loss for name, loss in losses(model, x).items() if name in groups}
    together = torch.stack([loss.total for loss in total.values()]).sum()
    everything = [p for name in total for p in groups[name]]
    gradients = torch.autograd.grad(together, everything, retain_graph=True, allow_unused=True)
    named = {id(p): name for name, p in model.named_parameters()}
    for parameter, gradient in zip(everything, gradients):
        assert gradient is not None, f"parameter '{named[id(parameter)]}' gets no gradient"
    for name, loss in total.items():
        own = torch.autograd.grad(loss.total, groups[name], retain_graph=True, allow_unused=True)
        for parameter, expected in zip(groups[name], own):
            found = gradients[next(i for i, p in enumerate(everything) if p is parameter)]
            assert expected is not None, (
                f"parameter '{named[id(parameter)]}' gets no gradient from loss '{name}'"
            )
            assert found is not None
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7), (
                f"parameter '{named[id(parameter)]}' of group '{name}' gets gradient from another loss"
            )


def check_evaluation_changes_nothing(make: Make) -> None:
    """In eval mode, losses leave every buffer as it is."""
    model = fresh(make).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        losses(model, images(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"'{name}' changed in eval mode"


def check_sampling(make: Make) -> None:
    """`sample` gives finite images that depend on the generator alone, or says how to fit a prior."""
    model = with_prior(make)
    device = next(model.parameters()).device
    first, second, other = (model.sample(5, generator=generator(seed, device)) for seed in (1, 1, 2))
    assert first.shape == (5, *model.config.image_shape), f"sample(5) has shape {tuple(first.shape)}"
    assert first.isfinite().all(), "samples are not finite"
    assert torch.equal(first, second), "the same generator gave other samples"
    assert not torch.equal(first, other), "another generator gave the same samples"
    unfitted = fresh(make)
    if unfitted.default_prior is not None:
        said = "nothing"
        try:
            unfitted.sample(1)
        except NotFittedError as error:
            said = str(error)
        assert "fit_prior" in said, f"`sample` without a fitted prior must say how to fit one; it said {said}"


def check_latent_tools(make: Make) -> None:
    """Interpolations begin and end at reconstructions, a traversal's middle is one; represent decodes."""
    model = fresh(make).eval()
    a, b = images(model, 2, seed=1), images(model, 2, seed=2)
    reconstruction = model.reconstruct(a)
    assert reconstruction.shape == a.shape, f"reconstruct gives {tuple(reconstruction.shape)}"
    for spherical in (False, True):
        way = model.interpolate(a, b, steps=3, spherical=spherical)
        assert way.shape == (2, 3, *a.shape[1:]), f"interpolate gives {tuple(way.shape)}"
        assert torch.allclose(way[:, 0], reconstruction, atol=1e-3), "interpolation does not begin at a"
        assert torch.allclose(way[:, 2], model.reconstruct(b), atol=1e-3), "interpolation does not end at b"
    walk = model.traverse(a, dims=[0], span=1.0, steps=3)
    assert walk.shape == (2, 1, 3, *a.shape[1:]), f"traverse gives {tuple(walk.shape)}"
    assert torch.allclose(walk[:, 0, 1], reconstruction, atol=1e-3), (
        "a traversal's middle is not the reconstruction"
    )
    with torch.no_grad():
        assert torch.allclose(model.decode(model.represent(a)).mean, reconstruction, atol=1e-4), (
            "decode(represent(x)).mean is not reconstruct(x)"
        )


def check_log_prob(make: Make) -> None:
    """With a prior, `log_prob` is finite for each image; for a point mass over vectors it need not be."""
    model = with_prior(make)
    x = images(model)
    q = model.encode(x)
    if q.deterministic and model.latent.codes is None:
        return
    with seeded(0, x.device):
        bound = model.log_prob(x, samples=3)
    assert bound.shape == (BATCH,), f"log_prob(x) has shape {tuple(bound.shape)}"
    assert bound.isfinite().all(), f"log_prob(x) is {bound}"


def check_training_helps(make: Make) -> None:
    """Thirty steps of Adam on one batch lower its loss."""
    model = fresh(make)
    x = images(model, 12)
    model.initialize(x)
    model.train()
    optimizers = {n: torch.optim.Adam(g, lr=1e-3) for n, g in model.parameter_groups().items()}
    history = []
    for step in range(30):
        found = losses(model, x, seed=step)
        history.append(found[next(iter(optimizers))].total.item())
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        torch.stack([loss.total for loss in found.values()]).sum().backward()
        for name in found.keys() & optimizers.keys():
            optimizers[name].step()
    assert sum(history[-5:]) < sum(history[:5]), f"the loss went from {history[0]:.2f} to {history[-1]:.2f}"


def check_checkpoint(make: Make) -> None:
    """A saved model comes back with its prior, bit for bit."""
    model = with_prior(make)
    x = images(model)
    with tempfile.TemporaryDirectory() as folder:
        again = load(save(model, folder), next(model.parameters()).device)
    assert again.config == model.config, f"{model.config} came back as {again.config}"
    assert torch.equal(again.reconstruct(x), model.reconstruct(x)), "reconstructions differ after loading"
    same = generator(0, x.device), generator(0, x.device)
    assert torch.equal(again.sample(2, same[0]), model.sample(2, same[1])), "samples differ after loading"


def check_cuda_ready(make: Make) -> None:
    """No tensor left on the CPU and no hidden synchronisation: runs on a fake CUDA device, without a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            _run_on_fake_cuda(make)
    except RuntimeError as error:
        raise AssertionError(
            f"does not run on CUDA (a tensor left on the CPU, or a value read back to the host): {error}"
        ) from error


def _run_on_fake_cuda(make: Make) -> None:
    with torch.device("cuda"):
        model = make().train()
    x = torch.zeros(BATCH, *model.config.image_shape, device="cuda")
    for loss in model.losses(x, progress(model)).values():
        assert loss.total.device.type == "cuda", "a loss is on the CPU"
    q = model.encode(x)
    assert model.decode(q.rsample()).mean.device.type == "cuda", "decode gives images on the CPU"
    if model.default_prior is not None:
        attach_prior(model)
        for loss in model.require_prior().losses(model.latents(x), progress(model)).values():
            assert loss.total.device.type == "cuda", "a loss of the prior is on the CPU"
    assert model.sample(2).device.type == "cuda", "samples are on the CPU"
    assert model.interpolate(x, x, 3).device.type == "cuda", "interpolations are on the CPU"
    if not (q.deterministic and model.latent.codes is None):
        assert model.log_prob(x, samples=2).device.type == "cuda", "log_prob is on the CPU"


def with_prior(make: Make) -> Autoencoder:
    """A model in eval mode with some prior of its default kind."""
    model = fresh(make).eval()
    if model.prior is None:
        attach_prior(model)
    return model


def attach_prior(model: Autoencoder) -> None:
    name = model.default_prior or "gaussian_mixture"
    prior = PRIORS.get(name)
    device = next(model.parameters()).device
    with torch.device(device):
        model.prior = prior(prior.Config(**SMALL_PRIORS.get(name, {})), model.latent).eval()
        model.prior.fitted = True


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_config_is_json,
    check_documented,
    check_distributions,
    check_images_are_independent,
    check_losses,
    check_units,
    check_parameter_groups,
    check_gradients,
    check_evaluation_changes_nothing,
    check_sampling,
    check_latent_tools,
    check_log_prob,
    check_training_helps,
    check_checkpoint,
    check_cuda_ready,
)
