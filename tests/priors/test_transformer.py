"""Oracles 13 and 14: causality without a blind spot, normalisation by enumeration, cached = full forward."""

import itertools

import pytest
import torch

from vaezoo.errors import VaezooError
from vaezoo.priors import PRIORS, LatentShape


def make(shapes, codes, seed=0, **options):
    torch.manual_seed(seed)
    prior = PRIORS.get("transformer")
    model = prior(
        prior.Config(**{"width": 16, "depth": 2, "heads": 2, **options}), LatentShape(shapes, codes)
    ).eval()
    for parameter in model.parameters():  # away from the start, where predictions hardly depend on the codes
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("shapes", [((3, 3),), ((1, 2), (2, 3))])
def test_causal_without_a_blind_spot(shapes):
    """The logits at i depend on no code at j >= i, exactly, and on every one at j < i."""
    model = make(shapes, codes=5)
    noise = torch.Generator().manual_seed(1)
    z = tuple(torch.randint(5, (1, *shape), generator=noise) for shape in shapes)

    def logits(levels):
        with torch.no_grad():
            return torch.cat(model.logits(levels if len(levels) > 1 else levels[0]), 1)[0]

    base = logits(z)
    for j in range(model.length):
        flat = torch.cat([level.flatten() for level in z])
        flat[j] = (flat[j] + 1) % 5
        parts = flat.split(model.lengths)
        changed = logits(tuple(part.view(1, *shape) for part, shape in zip(parts, shapes)))
        assert torch.equal(changed[: j + 1], base[: j + 1]), f"a position up to {j} sees code {j}"
        assert (changed[j + 1 :] != base[j + 1 :]).any(1).all(), f"a position after {j} does not see code {j}"


def test_neighbours():
    """Of each position: the one before, the one above, the coarser one under it; 0 where there is none."""
    before, above, under = make(((1, 2), (2, 4)), codes=3).neighbours
    assert before.tolist() == list(range(10))
    assert above.tolist() == [0, 0, 0, 0, 0, 0, 3, 4, 5, 6]
    assert under.tolist() == [0, 0, 1, 1, 2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize(("shapes", "codes"), [(((3, 3),), 2), (((2, 2),), 4), (((1, 2), (2, 2)), 3)])
def test_probabilities_of_all_grids_sum_to_one(shapes, codes):
    model = make(shapes, codes)
    grids = torch.tensor(list(itertools.product(range(codes), repeat=model.length)))
    levels = tuple(part.view(-1, *shape) for part, shape in zip(grids.split(model.lengths, 1), shapes))
    with torch.no_grad():
        log_prob = model.log_prob(levels if len(levels) > 1 else levels[0])
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_samples_follow_the_probabilities():
    model = make(((2, 2),), codes=2)
    grids = torch.tensor(list(itertools.product(range(2), repeat=4)))
    with torch.no_grad():
        expected = 20_000 * model.log_prob(grids.view(-1, 2, 2)).exp().double()
    z = model.sample(20_000, torch.Generator().manual_seed(0)).flatten(1)
    counts = torch.bincount((z * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16).double()
    chi_squared = ((counts - expected).square() / expected).sum().item()
    assert chi_squared < 15 + 5 * 30**0.5


@pytest.mark.parametrize("shapes", [((3, 3),), ((1, 2), (2, 2))])
def test_cached_logits_are_the_full_forward(shapes):
    """Replays a sample through the cache, position by position, against one forward over the whole grid."""
    model = make(shapes, codes=4)
    z = model.sample(3, torch.Generator().manual_seed(0))
    caches = [block.empty_cache(3, model.length) for block in model.blocks]
    with torch.no_grad():
        full = torch.cat(model.logits(z), 1)
        levels = z if isinstance(z, tuple) else (z,)
        tokens = torch.cat([level.flatten(1) for level in levels], 1) + model.offsets
        tokens = torch.nn.functional.pad(tokens, (1, 0))
        level_of = [i for i, n in enumerate(model.lengths) for _ in range(n)]
        for t in range(model.length):
            h = model.embed(tokens, slice(t, t + 1))
            for block, cache in zip(model.blocks, caches):
                h = block(h, cache, t)
            cached = model.heads[level_of[t]](model.norm(h)).squeeze(1)
            torch.testing.assert_close(cached, full[:, t], rtol=1e-4, atol=1e-4)


def test_sampling_does_not_depend_on_the_training_mode_of_dropout():
    """Trap 9: a prior that is sampled in train mode draws its dropout too."""
    model = make(((2, 2),), codes=4, dropout=0.5)
    expected = model.sample(50, torch.Generator().manual_seed(0))
    for _ in range(2):
        assert torch.equal(model.train().sample(50, torch.Generator().manual_seed(0)), expected)
        assert model.training, "sampling left the prior in another mode"


def test_refuses_vectors_and_heads_that_do_not_divide():
    prior = PRIORS.get("transformer")
    with pytest.raises(VaezooError, match="prior over code grids"):
        prior(prior.Config(), LatentShape(((20,),)))
    with pytest.raises(VaezooError, match="does not divide"):
        prior(prior.Config(width=30, heads=4), LatentShape(((2, 2),), codes=4))
