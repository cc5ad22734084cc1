"""k-means: scikit-learn's fixed points, and the probabilities of the k-means++ start by enumeration."""

import math
from itertools import product

import pytest
import torch
from sklearn.cluster import KMeans

from vaezoo import clustering
from vaezoo.clustering import k_means, lloyd, nearest, plus_plus, totals


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters(n=60, k=3, dim=2):
    noise = torch.randn(n * k, dim, generator=seeded(), dtype=torch.float64)
    centres = 30 * torch.eye(k, dim, dtype=torch.float64)
    return centres.repeat_interleave(n, 0) + noise


def test_lloyd_from_the_same_start_is_scikit_learns():
    points = torch.randn(400, 3, generator=seeded(), dtype=torch.float64)
    start = points[:6]
    reference = KMeans(6, init=start.numpy(), n_init=1, max_iter=300, tol=0).fit(points.numpy())
    torch.testing.assert_close(lloyd(points, start, 300), torch.from_numpy(reference.cluster_centers_))


def test_a_centre_without_points_stays_where_it_is():
    points = clusters(k=2)
    start = torch.cat([points[[0, -1]], torch.full((2, 2), 500.0).double()])
    centres = lloyd(points, start, 10)
    assert torch.equal(centres[2:], start[2:])
    torch.testing.assert_close(centres[:2], torch.stack([points[:60].mean(0), points[60:].mean(0)]))


def test_the_start_has_the_probabilities_of_k_means_plus_plus():
    """Of all ordered triples of five points, one of them twice, by enumeration."""
    points = torch.tensor([[0.0], [1.0], [1.0], [3.0], [7.0]])
    draws = 4000
    generator = seeded()
    found = {}
    for _ in range(draws):
        triple = tuple(plus_plus(points, 3, generator)[:, 0].tolist())
        found[triple] = found.get(triple, 0) + 1
    expected = {}
    values = points[:, 0].tolist()
    for triple in product(values, repeat=3):
        p = 1 / 5
        for i in (1, 2):
            weights = [min((v - c) ** 2 for c in triple[:i]) for v in values]
            p *= min((triple[i] - c) ** 2 for c in triple[:i]) / sum(weights)
        expected[triple] = expected.get(triple, 0) + p
    assert sum(expected.values()) == pytest.approx(1)
    assert {triple for triple, p in expected.items() if p > 0} >= found.keys()
    for triple, p in expected.items():
        assert abs(found.get(triple, 0) / draws - p) <= 4 * math.sqrt(p * (1 - p) / draws), triple


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_are_apart_are_found(seed):
    points = clusters()
    centres = k_means(points, 3, seeded(seed))
    expected = points.view(3, 60, 2).mean(1)
    order = torch.cdist(expected, centres).argmin(1)
    torch.testing.assert_close(centres[order], expected)


def test_no_more_points_than_centres():
    points = torch.randn(3, 2, generator=seeded())
    assert {tuple(c) for c in k_means(points, 5, seeded()).tolist()} == {tuple(p) for p in points.tolist()}
    assert torch.equal(k_means(torch.ones(4, 2), 3, seeded()), torch.ones(3, 2))
    assert torch.equal(k_means(points[:1], 1, seeded()), points[:1])


def test_nearest_by_blocks_is_nearest_at_once(monkeypatch):
    points, centres = torch.randn(100, 3, generator=seeded()), torch.randn(7, 3, generator=seeded(1))
    whole = nearest(points, centres)
    assert torch.equal(whole, torch.cdist(points, centres).argmin(1))
    for most in (70, 75, 3):  # ten points at a time, with and without a rest; fewer than one, so one
        monkeypatch.setattr(clustering, "DISTANCES_CPU", most)
        assert torch.equal(nearest(points, centres), whole)


def test_totals():
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    n, sums = totals(points, torch.tensor([2, 0, 2]), 3)
    assert n.tolist() == [1, 0, 2]
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8]]
