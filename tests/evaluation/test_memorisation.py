from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from vaezoo.evaluation.features import Features
from vaezoo.evaluation.memorisation import (
    copying_statistic,
    measure_memorisation,
    memorised_share,
)
from vaezoo.evaluation.report import Detail, Metric, Results, Skipped

FEATURES = Features("toy", lambda x: x)


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, dtype=torch.float64, generator=generator)


def measured(generated: Tensor, training: Tensor, held_out: Tensor, total: int | None = None) -> Results:
    total = total or len(training)
    return measure_memorisation(
        FEATURES, generated, training, held_out, torch.arange(len(training)), total, seed=0
    )


def value(results: Results, name: str) -> float:
    result = results[f"{name}_toy"]
    assert isinstance(result, Metric)
    return result.value


def test_memorised_share_by_hand() -> None:
    """Of 199 held-out distances 1 to 199, 1% is the second smallest, and those at it count."""
    held_out = torch.arange(1, 200).double().flip(0)
    share, _ = memorised_share(torch.tensor([0.0, 2.0, 2.1, 50.0]).double(), held_out)
    assert share == 0.5
    assert memorised_share(torch.zeros(10).double(), torch.zeros(150).double())[0] == 1


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 0.01), (0.1, None)])
def test_memorised_share_and_its_standard_error(scale: float, expected: float | None) -> None:
    """1% of an honest model; r/(N + 1) below the r-th smallest does not depend on the distribution."""
    runs = [
        memorised_share(scale * normal(1000, 1, s)[:, 0].abs(), normal(999, 1, 5000 + s)[:, 0].abs())
        for s in range(300)
    ]
    shares = torch.tensor([share for share, _ in runs])
    if expected is not None:
        assert abs(shares.mean() - expected) < 4 * shares.std() / math.sqrt(300)
    predicted = math.sqrt(sum(se**2 for _, se in runs) / 300)
    assert predicted == pytest.approx(shares.std().item(), rel=0.2)


def test_copying_statistic_is_the_mann_whitney_z_of_each_cell() -> None:
    generated, held_out = normal(90, 1, 0)[:, 0].round(decimals=1), normal(120, 1, 1, 0.3)[:, 0]
    held_out[:40] = held_out[:40].round(decimals=1)  # ties
    cells_g, cells_h = torch.arange(90) % 2, (torch.arange(120) % 3 == 0).long()
    expected, weights = 0.0, []
    for cell in (0, 1):
        g, h = generated[cells_g == cell], held_out[cells_h == cell]
        u = scipy.stats.mannwhitneyu(g.numpy(), h.numpy()).statistic
        spread = math.sqrt(len(g) * len(h) * (len(g) + len(h) + 1) / 12)
        expected += len(h) / 120 * (u - len(g) * len(h) / 2) / spread
        weights.append(len(h) / 120)
    found = copying_statistic(generated, held_out, cells_g, cells_h)
    assert found is not None
    assert found[0] == pytest.approx(expected, rel=1e-9)
    assert found[2] == pytest.approx(math.hypot(*weights))


def test_cells_with_few_images_are_left_out() -> None:
    g, h = normal(60, 1, 0)[:, 0], normal(60, 1, 1)[:, 0]
    few = torch.cat([torch.zeros(50), torch.ones(10)]).long()
    everything = torch.zeros(60).long()
    assert copying_statistic(g, h, few, few) == copying_statistic(g[:50], h[:50], everything[:50], few[:50])
    assert copying_statistic(g[:10], h[:10], everything[:10], everything[:10]) is None


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_standard_error_of_the_copying_statistic(shift: float) -> None:
    """Without a difference it is N(0, sum of squared weights)."""
    draws = torch.Generator().manual_seed(0)
    found = []
    for s in range(300):
        g, h = normal(300, 1, s)[:, 0].abs(), normal(250, 1, 5000 + s)[:, 0].abs() + shift
        cells = (torch.randint(0, 3, (n,), generator=draws) for n in (300, 250))
        found.append(copying_statistic(g, h, *cells))
    values, ses, null = torch.tensor(found).unbind(1)
    assert ses.square().mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.15)
    if shift == 0:
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(300)
        assert null.mean().item() == pytest.approx(values.std().item(), rel=0.15)
    else:
        assert values.mean() < -2  # nearer to training images


def test_an_honest_model_a_copier_and_one_that_copies_with_a_little_noise() -> None:
    training, held_out = normal(1500, 6, 0).float(), normal(1000, 6, 1).float()
    honest = measured(normal(1000, 6, 2).float(), training, held_out)
    memorised, c_t = honest["memorised_toy"], honest["c_t_toy"]
    assert isinstance(memorised, Metric)
    assert isinstance(c_t, Metric)
    assert memorised.se is not None
    assert abs(memorised.value - 0.01) < 4 * memorised.se
    assert abs(c_t.value) < 4 / math.sqrt(10)
    for noise in (0.0, 0.05):
        copies = training[:1000] + noise * normal(1000, 6, 3).float()
        copying = measured(copies, training, held_out)
        assert value(copying, "memorised") > 0.95
        assert value(copying, "c_t") < -8
    tenth = torch.cat([training[:100], normal(900, 6, 2).float()])
    assert value(measured(tenth, training, held_out), "memorised") == pytest.approx(0.11, abs=0.02)
    far = measured(3 * normal(1000, 6, 2).float(), training, held_out)
    assert value(far, "c_t") > 3


def test_the_nearest_training_image_of_a_copy_is_the_original() -> None:
    training = normal(300, 20, 0).float()
    rows = torch.randperm(5000, generator=torch.Generator().manual_seed(0))[:300]  # of a larger split
    copies = training[[7, 7, 250]]
    results = measure_memorisation(FEATURES, copies, training, normal(99, 20, 1).float(), rows, 5000)
    detail = results["nearest_toy"]
    assert isinstance(detail, Detail)
    assert detail.axes == ("sample",)
    assert detail.values == [rows[7], rows[7], rows[250]]
    assert "300 of 5000" in detail.note
    many = measure_memorisation(FEATURES, training, training, training, rows, 5000)["nearest_toy"]
    assert isinstance(many, Detail)
    assert len(many.values) == 64


def test_bad_input_is_skipped_with_the_reason() -> None:
    sound = normal(120, 4, 0)
    broken = sound.clone()
    broken[3, 1] = float("nan")
    for position, what in enumerate(("generated", "training", "held-out")):
        sets = [sound, sound, sound]
        sets[position] = broken
        for result in measured(*sets).values():
            assert isinstance(result, Skipped)
            assert f"{what} images are not finite" in result.reason
    few = measured(sound[:5], sound[:5], sound[:5])
    assert isinstance(few["memorised_toy"], Skipped)
    assert "99" in few["memorised_toy"].reason
    assert isinstance(few["c_t_toy"], Skipped)
    assert "20 generated" in few["c_t_toy"].reason
    constant = torch.ones(120, 4)
    same = measured(constant, constant, constant)
    assert value(same, "memorised") == 1  # every image is a copy
    assert value(same, "c_t") == 0
    one = measured(sound[:1], sound[:1], sound)
    assert value(one, "memorised") in (0, 1)


def test_the_same_call_gives_the_same_numbers_and_leaves_the_random_state() -> None:
    sets = [normal(400, 5, s).half() for s in range(3)]
    state = torch.get_rng_state()
    assert measured(*sets) == measured(*sets)
    assert torch.equal(state, torch.get_rng_state())
