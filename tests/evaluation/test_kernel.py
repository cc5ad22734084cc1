from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vaezoo.evaluation.kernel import kernel_distance, vendi_score


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, dtype=torch.float64, generator=generator)


def repeated(
    n: int, m: int, d: int, scale: float, mean: float = 0.0, runs: int = 300
) -> tuple[Tensor, Tensor]:
    """Distances of fresh samples, and their predicted variances."""
    pairs = [kernel_distance(normal(n, d, s), normal(m, d, 5000 + s, mean, scale)) for s in range(runs)]
    return torch.stack([value for value, _ in pairs]), torch.stack([variance for _, variance in pairs])


def test_kernel_distance_is_the_unbiased_statistic_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(12, 5, 0), normal(9, 5, 1, mean=0.4)

    def k(a: Tensor, b: Tensor) -> float:
        return ((a @ b).item() / 5 + 1) ** 3

    xx = [k(x[i], x[j]) for i in range(12) for j in range(12) if i != j]
    yy = [k(y[i], y[j]) for i in range(9) for j in range(9) if i != j]
    xy = [k(a, b) for a in x for b in y]
    expected = sum(xx) / len(xx) + sum(yy) / len(yy) - 2 * sum(xy) / len(xy)
    value, variance = kernel_distance(x, y)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr("vaezoo.evaluation.kernel.PAIRS", 25)  # blocks of 2 rows
    blockwise = kernel_distance(x, y)
    assert blockwise[0].item() == pytest.approx(value.item(), rel=1e-10)
    assert blockwise[1].item() == pytest.approx(variance.item(), rel=1e-10)


@pytest.mark.parametrize(("n", "m", "scale"), [(200, 200, 1.0), (150, 300, 1.3)])
def test_kernel_distance_of_gaussians_and_its_standard_error(n: int, m: int, scale: float) -> None:
    """N(0, I) against N(0, s^2 I) is 3 (1 - s^2)^2 / d."""
    values, variances = repeated(n, m, 16, scale)
    expected = 3 * (1 - scale**2) ** 2 / 16
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(len(values))
    # 300 runs give a deviation within 4%; the kernel is cubic, so its variance is estimated less well.
    assert variances.mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.15)
    if scale == 1:
        assert 0.4 < (values < 0).double().mean() < 0.65  # an unbiased estimate of 0


def test_standard_error_of_the_kernel_distance_of_distributions_far_apart() -> None:
    values, variances = repeated(150, 100, 16, 1.0, mean=0.3)
    assert variances.mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.15)


def test_kernel_distance_in_float32_is_that_in_float64() -> None:
    x, y = normal(500, 64, 0), normal(500, 64, 1)  # of one distribution, where it is a small difference
    exact, variance = kernel_distance(x, y)
    single, _ = kernel_distance(x.float(), y.float())
    assert abs(single - exact) < 0.001 * variance.sqrt()


def test_constant_features_are_at_no_distance() -> None:
    constant = torch.full((20, 4), 0.7)
    value, variance = kernel_distance(constant, constant)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert variance.item() == pytest.approx(0, abs=1e-6)


def test_vendi_score_of_equal_rows_is_one_and_of_orthogonal_groups_their_number() -> None:
    assert vendi_score(torch.ones(30, 5))[0].item() == pytest.approx(1, abs=1e-9)
    for groups in (2, 7):
        rows = torch.eye(10)[:groups].repeat(6, 1) * torch.arange(1, 6 * groups + 1)[:, None]  # any lengths
        assert vendi_score(rows)[0].item() == pytest.approx(groups, rel=1e-9)
    assert vendi_score(torch.eye(40))[0].item() == pytest.approx(40, rel=1e-9)


def test_vendi_score_and_standard_error_of_unequal_groups() -> None:
    """exp(H(p)) for shares p, and the multinomial variance of that: exp(2 H) Var(log p) / n."""
    counts = torch.tensor([50, 30, 20])
    p = counts.double() / 100
    entropy = -(p * p.log()).sum()
    score, variance = vendi_score(torch.eye(3).repeat_interleave(counts, 0))
    assert score.item() == pytest.approx(entropy.exp().item(), rel=1e-9)
    spread = (p * p.log().square()).sum() - entropy**2
    assert variance.item() == pytest.approx((score**2 * spread / 99).item(), rel=1e-9)


def test_vendi_score_equals_the_entropy_of_the_whole_kernel_matrix() -> None:
    for n, d in ((25, 6), (6, 25)):  # more rows than features, and fewer
        x = normal(n, d, 0, mean=0.3)
        unit = x / x.norm(dim=1, keepdim=True)
        values = torch.linalg.eigvalsh(unit @ unit.T / n).clamp_min(1e-300)
        score, variance = vendi_score(x)
        assert score.item() == pytest.approx((-(values * values.log()).sum()).exp().item(), rel=1e-9)
        assert variance.isfinite()


def test_standard_error_of_the_vendi_score_is_that_of_repeated_sampling() -> None:
    spread = 1 / torch.arange(1, 9).double()
    runs = [vendi_score(normal(400, 8, s) * spread + 0.3) for s in range(300)]
    seen = torch.stack([score for score, _ in runs]).std().item()
    predicted = torch.stack([variance for _, variance in runs]).mean().sqrt().item()
    assert predicted == pytest.approx(seen, rel=0.15)
