from __future__ import annotations

import pytest
import torch

from vaezoo.distributions import code_counts, perplexity
from vaezoo.evaluation.latents import active_units


def test_perplexity_is_k_for_uniform_and_1_for_constant_codes() -> None:
    assert perplexity(code_counts(torch.arange(12).repeat(5).view(3, 20), 12)).item() == pytest.approx(12)
    assert perplexity(code_counts(torch.full((4, 5), 7), 12)).item() == pytest.approx(1)
    two = code_counts(torch.tensor([0, 0, 0, 3]), 4)
    assert perplexity(two).item() == pytest.approx(4 / 27**0.25)  # exp(-(3/4 log 3/4 + 1/4 log 1/4))


def test_counts_of_batches_add_up() -> None:
    codes = torch.randint(9, (50, 4, 4), generator=torch.Generator().manual_seed(0))
    parts = sum(code_counts(part, 9) for part in codes.split(17))
    assert torch.equal(parts, torch.bincount(codes.flatten(), minlength=9).double())


def test_active_units_measure_the_variance_over_images() -> None:
    x = torch.linspace(-1, 1, 1001).unsqueeze(1)  # variance 1/3
    means = torch.cat([x, 0.1 * x, 0.2 * x, 5 + 0 * x], 1)  # variances .33, .0033, .013, 0
    assert active_units(means).tolist() == [True, False, True, False]
