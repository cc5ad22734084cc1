from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from vaezoo.evaluation.neighbours import (
    nearest,
    neighbour_radii,
    neighbourhood_variances,
    neighbourhoods,
    squared_distances,
)


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, dtype=torch.float64, generator=generator)


def brute(real: Tensor, fake: Tensor, k: int) -> list[float]:
    """Precision, recall, density and coverage from their definitions, point by point."""

    def radius(points: Tensor, i: int) -> float:
        others = sorted((points[i] - p).norm().item() for j, p in enumerate(points) if j != i)
        return others[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, i) for i in range(len(fake))]
    inside = [[(f - r).norm().item() <= rho for r, rho in zip(real, real_radii)] for f in fake]
    precision = sum(any(row) for row in inside) / len(fake)
    recall = sum(any((r - f).norm() <= rho for f, rho in zip(fake, fake_radii)) for r in real) / len(real)
    density = sum(sum(row) for row in inside) / (k * len(fake))
    coverage = sum(any(row[i] for row in inside) for i in range(len(real))) / len(real)
    return [precision, recall, density, coverage]


def means(real: Tensor, fake: Tensor, k: int) -> list[float]:
    return [v.mean().item() for v in neighbourhoods(real, fake, k, k)]


@pytest.mark.parametrize("d", [3, 30])  # distances as they are, and by a product
def test_neighbourhood_metrics_equal_their_definitions(monkeypatch: pytest.MonkeyPatch, d: int) -> None:
    real, fake = normal(40, d, 0), normal(30, d, 1, mean=1 / d)
    expected = brute(real, fake, 3)
    assert means(real, fake, 3) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr("vaezoo.evaluation.neighbours.DISTANCES", 100)  # blocks of 2 or 3 rows
    assert means(real, fake, 3) == pytest.approx(expected, abs=1e-6)
    precision, recall, density, coverage = brute(real, fake, 3)[:2] + brute(real, fake, 5)[2:]
    both = [v.mean().item() for v in neighbourhoods(real, fake, 3, 5)]
    assert both == pytest.approx([precision, recall, density, coverage], abs=1e-6)


def test_radii_by_hand() -> None:
    assert neighbour_radii(torch.tensor([[0.0], [1.0], [3.0]]), (1, 2)).sqrt().tolist() == [
        [1, 3],
        [1, 2],
        [2, 3],
    ]


def test_distances_of_equal_rows_are_zero_and_others_exact() -> None:
    a = normal(20, 50, 0, mean=5).float()
    b = torch.cat([a, normal(10, 50, 1).float()])
    distances = squared_distances(a, b)
    assert torch.equal(distances[:, :20].diagonal(), torch.zeros(20))
    expected = torch.cdist(a.double(), b.double()).square()
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=5e-3)


def test_density_and_coverage_of_one_distribution() -> None:
    """Density 1, coverage 1 - prod_{i=1..k} (N - i) / (N + M - i)."""
    n, m, k = 300, 200, 5
    runs = torch.tensor([means(normal(n, 8, s), normal(m, 8, 500 + s), k)[2:] for s in range(40)])
    expected = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    error = runs.std(0) / math.sqrt(len(runs))
    assert abs(runs[:, 0].mean() - 1) < 4 * error[0]
    assert abs(runs[:, 1].mean() - expected) < 4 * error[1]


def test_disjoint_supports_and_missing_modes() -> None:
    real = torch.cat([normal(200, 2, 0), normal(200, 2, 1, mean=50)])
    assert means(real, normal(400, 2, 2, mean=-50), 3) == [0, 0, 0, 0]
    precision, recall, _, coverage = means(real, normal(400, 2, 3), 3)
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.06)
    assert coverage == pytest.approx(0.5, abs=0.06)


def test_collapsed_and_constant_features() -> None:
    """Balls of radius 0 hold what is exactly there and nothing else."""
    real, one = normal(100, 20, 0).float(), torch.full((100, 20), 0.1)
    precision, recall, _, coverage = means(real, one, 3)
    assert (precision, recall) == (1, 0)  # the middle of the data is in its manifold
    assert coverage < 1
    assert means(one, one, 3) == pytest.approx([1, 1, 100 / 3, 1])
    assert means(one, one + 1, 3) == [0, 0, 0, 0]


def test_standard_errors_include_that_of_the_balls() -> None:
    """With balls that are held fixed they would be a third too small."""
    draws = torch.Generator().manual_seed(0)
    values, variances = [], []
    for s in range(150):
        real, fake = normal(400, 8, s).float(), normal(400, 8, 1000 + s).float()
        values.append(torch.stack([v.mean() for v in neighbourhoods(real, fake)]))
        if s < 30:
            variances.append(neighbourhood_variances(real, fake, draws))
    predicted, seen = torch.stack(variances).mean(0).sqrt(), torch.stack(values).std(0)
    for ours, theirs in zip(predicted.tolist(), seen.tolist()):
        assert ours == pytest.approx(theirs, rel=0.28)  # binomial ones: -32%, -29%, -38%, -26%


def test_nearest_finds_copies_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaezoo.evaluation.neighbours.DISTANCES", 500)
    points = normal(200, 30, 0, mean=10).float()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:50]
    distances, indices = nearest(points[order], points)
    assert torch.equal(indices, order)
    assert torch.equal(distances, torch.zeros(50))
    queries = normal(40, 30, 1, mean=10).float()
    every = torch.cdist(queries.double(), points.double())
    distances, indices = nearest(queries, points)
    assert torch.equal(indices, every.argmin(1))
    torch.testing.assert_close(distances.double(), every.min(1).values, rtol=1e-5, atol=1e-5)


MEMORY = """
import resource, torch
from vaezoo.evaluation import kernel, neighbours
torch.set_num_threads(1)
neighbours.DISTANCES = kernel.PAIRS = 2**18

def use(n):
    a, b = (torch.randn(n, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    neighbours.neighbourhoods(a, b)
    neighbours.nearest(a, b)
    kernel.kernel_distance(a, b)
    kernel.vendi_score(a)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = use(500)
print(use(4000) - before)
"""


def test_memory_is_bounded_by_blocks() -> None:
    """A matrix of all 4000 x 4000 distances is 61 MiB; a block, 1 MiB, and there are a few at a time."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 30
