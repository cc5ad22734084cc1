"""Oracles 10, 11 and 12, and trap 5: what moving-average codebooks get wrong in public code."""

import math

import pytest
import torch
from memory import Memory
from sklearn.cluster import KMeans

from vaezoo import clustering
from vaezoo.distributions import code_counts, perplexity
from vaezoo.networks.quantizer import Codebook


def clusters(n=400, k=5, dim=3, seed=0):
    noise = torch.Generator().manual_seed(seed)
    centres = 6 * torch.randn(k, dim, generator=noise, dtype=torch.float64)
    labels = torch.arange(n) % k
    return centres[labels] + 0.3 * torch.randn(n, dim, generator=noise, dtype=torch.float64)


def as_grid(z):
    return z.T.reshape(1, z.shape[1], 1, -1)


def make(start, **options):
    book = Codebook(*start.shape, **{"revive": 0.0, **options}).double()
    with torch.no_grad():
        book.vectors.copy_(start)
    return book


@pytest.mark.parametrize("shape", [(2, 7, 4), (3, 4, 5, 6), (1, 4, 1, 1)])
def test_nearest_is_the_nearest(shape):
    torch.manual_seed(0)
    book = Codebook(11, shape[1])
    z = torch.randn(shape)
    flat = z.movedim(1, -1)
    brute_force = torch.cdist(flat.reshape(-1, shape[1]), book.vectors).argmin(1).view(flat.shape[:-1])
    q = book(z)
    assert torch.equal(q.codes, brute_force)
    assert torch.equal(q.vectors.movedim(1, -1), book.vectors[brute_force])


def test_one_update_without_memory_is_a_lloyd_step():
    z = clusters()
    book = make(z[:5].clone(), decay=0.0)
    q = book(as_grid(z))
    expected = torch.stack([z[q.codes.flatten() == k].mean(0) for k in range(5)])
    book.update(q)
    torch.testing.assert_close(book.vectors, expected, rtol=0, atol=1e-6)


def test_converges_to_k_means():
    z = clusters(k=5)
    start = z[[0, 1, 2, 3, 4]].clone()
    reference = KMeans(5, init=start.numpy(), n_init=1, max_iter=300, tol=0).fit(z.numpy())
    book = make(start, decay=0.0)
    for _ in range(50):
        book.update(book(as_grid(z)))
    torch.testing.assert_close(book.vectors, torch.from_numpy(reference.cluster_centers_), rtol=0, atol=1e-4)


def test_moving_average_settles_on_the_centroids():
    z = clusters()
    book = make(z[:5].clone(), decay=0.99)
    for _ in range(1500):
        book.update(book(as_grid(z)))
    codes = book.nearest(as_grid(z)).flatten()
    centroids = torch.stack([z[codes == k].mean(0) for k in range(5)])
    assert (book.vectors - centroids).norm(dim=1).max() < 1e-3


def test_update_is_the_papers_moving_average():
    """Eq. 6 to 8 written out, with sums m and counts N of their own, over batches that vary."""
    z = clusters(n=600)
    book = make(z[:5].clone(), decay=0.9)
    even = 100 / 5
    counts, sums = torch.full((5,), even).double(), even * book.vectors.clone()
    for batch in z.split(100):
        q = book(as_grid(batch))
        one_hot = torch.nn.functional.one_hot(q.codes.flatten(), 5).double()
        counts = 0.9 * counts + 0.1 * one_hot.sum(0)
        sums = 0.9 * sums + 0.1 * one_hot.T @ batch
        book.update(q)
        torch.testing.assert_close(book.vectors, sums / counts.unsqueeze(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99])
def test_unused_codes_stay_where_they_are(decay):
    """Trap 5: with counts that start at zero, or a smoothing 1/eps, unused codes jump to huge norms."""
    z = clusters(k=2)
    start = torch.cat([z[:2], torch.full((3, 3), 100.0).double()])
    book = make(start.clone(), decay=decay)
    for _ in range(3000):
        book.update(book(as_grid(z)))
    assert torch.equal(book.vectors[2:], start[2:])
    assert book.vectors.isfinite().all()


def test_dead_codes_are_revived_onto_the_data_with_fresh_usage():
    """Trap 5: a revival that forgets the running state is undone, or repeated, at the next step."""
    torch.manual_seed(0)
    z = clusters(n=500, k=5)
    start = torch.cat([z[:1], torch.full((4, 3), 100.0).double()])
    book = make(start, decay=0.99, revive=0.01)
    while book.usage[1] > 0.0101:
        book.update(book(as_grid(z)))
    assert torch.equal(book.vectors[1:], start[1:]), "not dead yet"
    book.update(book(as_grid(z)))
    on_data = (book.vectors[1:, None] == z[None]).all(-1).any(1)
    assert on_data.all(), "revived codes are not vectors of the data"
    assert torch.equal(book.usage[1:], torch.full((4,), book.fresh, dtype=torch.float64))
    for _ in range(300):
        before = book.vectors.clone()
        book.update(book(as_grid(z)))
        assert (book.vectors - before).norm(dim=1).max() < 30, "a revived code jumped away again"
    assert perplexity(code_counts(book.nearest(as_grid(z)), 5)) > 3
    assert (book.vectors.amax(0) <= z.amax(0)).all(), "a code is outside the data"
    assert (book.vectors.amin(0) >= z.amin(0)).all(), "a code is outside the data"


def test_living_codes_are_not_revived():
    z = clusters(k=5)
    start = z[:5].clone()
    moved, fixed = make(start.clone(), revive=0.01), make(start.clone(), revive=0.0)
    for book in (moved, fixed):
        book.usage.fill_(1.0)
        for _ in range(10):
            book.update(book(as_grid(z)))
    assert torch.equal(moved.vectors, fixed.vectors)


def test_gradient_codebook_is_a_parameter_and_update_leaves_it():
    book = Codebook(4, 3, ema=False, revive=0.0)
    assert [name for name, _ in book.named_parameters()] == ["vectors"]
    before = book.vectors.detach().clone()
    book.update(book(torch.randn(2, 3, 4, 4)))
    assert torch.equal(book.vectors, before)
    assert not list(Codebook(4, 3, ema=True).parameters())


def test_k_means_start_lowers_the_quantisation_error():
    torch.manual_seed(0)
    z = as_grid(clusters(n=1000, k=8))
    book = make(torch.zeros(8, 3).double())

    def error():
        return (z - book(z).vectors).square().mean().item()

    at_zero = error()
    book.initialize(z, iterations=0)
    at_random = error()
    book.initialize(z, iterations=20)
    assert error() < at_random < at_zero


def test_k_means_start_with_fewer_vectors_than_codes():
    book = make(torch.zeros(8, 3).double())
    book.initialize(as_grid(clusters(n=5)))
    assert book.vectors.isfinite().all()


def test_straight_through_copies_the_gradient_bit_for_bit():
    """Oracle 11: what arrives at z_q goes on to z_e unchanged."""
    torch.manual_seed(0)
    book, decoder = Codebook(6, 4), torch.nn.Conv2d(4, 2, 3)
    z = torch.randn(2, 4, 5, 5, requires_grad=True)
    sample = book(z).rsample()
    sample.retain_grad()
    decoder(sample).square().sum().backward()
    assert torch.equal(z.grad, sample.grad)


def test_the_decoder_reads_codebook_vectors_exactly():
    """Trap 6: z_e + (e - z_e) is not e in floating point; a decoder that reads z_e itself is worse."""
    torch.manual_seed(0)
    book = Codebook(6, 4)
    z = 1000 * torch.randn(2, 4, 5, 5)
    q = book(z)
    assert torch.equal(q.rsample(), book.lookup(q.codes))


def test_memory_is_bounded_by_blocks():
    """A whole step on 32,768 vectors and 8192 codes: a block of distances, not the GiB of all of them."""
    k, dim, grid = 8192, 8, (2, 128, 128)
    book = Codebook(k, dim)
    z = torch.randn(grid[0], dim, *grid[1:], requires_grad=True)
    with Memory() as memory:
        q = book(z)
        loss = (q.encoded - q.vectors).square().sum() + q.rsample().sum()
        loss.backward()
        book.update(q)
    vectors = 4 * math.prod(grid) * dim  # as they are, with the channels last, looked up, with gradients
    codebook = 4 * k * (dim + 1)  # and half the squared norms
    assert memory.peak < 4 * clustering.DISTANCES_CPU + 4 * vectors + codebook
    assert memory.peak < math.prod(grid) * k * 4 / 100
