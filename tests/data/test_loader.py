import multiprocessing
import os
import signal

import pytest
import torch
from PIL import Image

from vaezoo.data import Loader, ResidentSplit, load_data
from vaezoo.errors import DataError


class Codes:
    """Not images at all: what a prior is trained on."""

    resident = True
    device = torch.device("cpu")

    def __init__(self, n):
        self.n, self.asked = n, 0

    def __len__(self):
        return self.n

    def batch(self, indices):
        self.asked += len(indices)
        return indices


class Streamed(Codes):
    resident = False

    def load(self, index):
        return torch.tensor([index], dtype=torch.uint8)

    def floats(self, images):
        return images.float() / 255


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("n", "size"), [(10, 3), (12, 3), (5, 5)])
def test_every_image_once_per_epoch(n, size, shuffle):
    loader = Loader(Codes(n), size, shuffle=shuffle, drop_last=False)
    batches = list(loader.epoch(0))
    assert len(batches) == loader.steps_per_epoch == -(-n // size)
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert (torch.cat(batches).tolist() == list(range(n))) == (not shuffle)


def test_drop_last_leaves_out_the_rest_and_not_always_the_same():
    loader = Loader(Codes(10), 3)
    left_out = set()
    for epoch in range(20):
        batches = list(loader.epoch(epoch))
        assert [len(batch) for batch in batches] == [3, 3, 3]
        assert loader.steps_per_epoch == 3
        left_out |= set(range(10)) - set(torch.cat(batches).tolist())
    assert len(left_out) > 5


def test_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        return torch.cat(list(Loader(Codes(100), 10, seed=seed).epoch(epoch))).tolist()

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert first == order(0, 0)
    assert torch.equal(state, torch.get_rng_state())
    orders = {tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16  # (0, 1) is not (1, 0), nor is seed + epoch all that counts


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("kind", [Codes, Streamed])
@pytest.mark.parametrize("start", [0, 2, 3, 4])
def test_start_gives_the_tail_of_the_epoch(kind, start, drop_last):
    loader = Loader(kind(10), 3, seed=5, drop_last=drop_last)
    whole, tail = list(loader.epoch(7)), list(loader.epoch(7, start))
    assert len(tail) == max(0, len(whole) - start)
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], tail))


def test_what_is_skipped_is_not_loaded():
    codes = Codes(100)
    list(Loader(codes, 10).epoch(0, start=8))
    assert codes.asked == 20


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_same_batches_as_a_resident_split(tmp_path, workers):
    pixels = torch.randint(0, 256, (23, 3, 5, 6), dtype=torch.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i:03}.png")
    resident, streaming = (load_data(tmp_path, memory_limit_gb=limit) for limit in (1, 0))
    assert resident.train.resident
    assert not streaming.train.resident
    assert resident.header()["fingerprint"] == streaming.header()["fingerprint"]
    state = torch.get_rng_state()
    a, b = (
        list(Loader(data.train, 4, seed=1, drop_last=False, workers=workers).epoch(3))
        for data in (resident, streaming)
    )
    assert len(a) == len(b) == 5
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert torch.equal(state, torch.get_rng_state())  # nor do workers touch the global generator
    indices = torch.tensor([3, 0, 3])
    assert torch.equal(resident.train.batch(indices), streaming.train.batch(indices))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_go_on_when_all_processes_of_a_run_are_told_to_end(number):
    """The trainer finishes its step and writes its state first."""
    loader = Loader(Streamed(40), 2, workers=2)
    expected = list(Loader(Streamed(40), 2).epoch(0))
    before = {process.pid for process in multiprocessing.active_children()}
    batches = loader.epoch(0)
    found = [next(batches), next(batches)]  # one of each worker, so both have started
    workers = [process for process in multiprocessing.active_children() if process.pid not in before]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, number)
    found += batches
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not any(worker.is_alive() for worker in workers)


def test_batch_sizes_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="batch_size=11 is more than the 10 images"):
        Loader(Codes(10), 11)
    with pytest.raises(DataError, match="batch_size=0"):
        Loader(Codes(10), 0)
    with pytest.raises(DataError, match="batch_size=1 is more than the 0"):
        Loader(Codes(0), 1, drop_last=False)
    # Where a smaller batch is welcome, a larger size is no mistake.
    assert [len(batch) for batch in Loader(Codes(10), 11, drop_last=False).epoch(0)] == [10]


def test_a_split_of_images_as_it_comes():
    pixels = torch.randint(0, 256, (7, 1, 2, 2), dtype=torch.uint8)
    batches = list(Loader(ResidentSplit(pixels), 2, shuffle=False, drop_last=False).epoch(0))
    assert torch.equal(torch.cat(batches), pixels / 255)
