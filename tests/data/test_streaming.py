"""Images that are decoded when they are asked for: as if they were in memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from vaezoo.data import Loader, load_data
from vaezoo.errors import DataError

RANDOM = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    """Thirty grey images, the first two of one level each."""
    pixels = RANDOM.integers(0, 256, (30, 32, 32), dtype=np.uint8)
    pixels[0], pixels[1] = 51, 255
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    return tmp_path


def load(folder, limit, binarize="none"):
    return load_data(folder, channels=1, memory_limit_gb=limit, binarize=binarize)


def test_parts_of_a_split(folder):
    split = load(folder, 0, "static").train
    part = split.subset(5, seed=0)
    order = split.draw(5, seed=0)
    assert torch.equal(part.batch(torch.arange(5)), split.batch(order))
    assert torch.equal(part.first(2).batch(torch.tensor([1])), split.batch(order[1:2]))
    assert len(part) == 5
    assert part.to("meta").device.type == "meta"


@pytest.mark.parametrize("workers", [0, 2])
def test_dynamic_binarisation_is_that_of_a_resident_split(folder, workers):
    """The same noise at every step, since it is drawn from the step's generator, not by the workers."""
    batches = {}
    for limit in (1, 0):
        train = load(folder, limit, "dynamic").train
        assert train.resident == bool(limit)
        torch.manual_seed(0)
        batches[limit] = list(Loader(train, 6, seed=1, workers=workers).epoch(0))
    assert len(batches[0]) == len(batches[1]) == 4
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[1]))
    train = load(folder, 0, "dynamic").train
    indices = torch.arange(3)
    assert train.batch(indices).unique().tolist() == [0, 1]
    assert not torch.equal(train.batch(indices), train.batch(indices))


def test_static_binarisation_is_drawn_once(folder):
    """The same draw in any order, by any process and in any part, and one of its own for every image."""
    data = load(folder, 0, "static")
    assert data.header() == load(folder, 0, "static").header()
    for split in data.splits.values():
        whole = split.batch(torch.arange(len(split)))
        assert whole.unique().tolist() == [0, 1]
        assert torch.equal(split.batch(torch.tensor([2, 0])), whole[[2, 0]])
        loader = Loader(split, 2, shuffle=False, drop_last=False, workers=2)
        assert torch.equal(torch.cat(list(loader.epoch(0))), whole)
    other = load_data(folder, channels=1, memory_limit_gb=0, binarize="static", seed=1)
    assert other.fingerprint() != data.fingerprint()


def test_static_binarisation_draws_grey_levels(folder):
    grey, binary = (load(folder, 0, binarize) for binarize in ("none", "static"))
    drawn = torch.cat([split.batch(torch.arange(len(split))) for split in binary.splits.values()])
    level = torch.cat([split.batch(torch.arange(len(split))) for split in grey.splits.values()])
    means = drawn.mean((1, 2, 3))
    flat = [int((level == value / 255).flatten(1).all(1).int().argmax()) for value in (51, 255)]
    assert means[flat[1]] == 1
    assert abs(means[flat[0]] - 0.2) < 4 * (0.2 * 0.8 / 1024) ** 0.5
    assert abs((drawn - level).mean()) < 4 * ((level * (1 - level)).mean() / level.numel()) ** 0.5
    noise = (drawn - level)[2:].flatten(1)
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 5 / 32


def test_no_program_is_started_for_an_image(folder):
    """Pillow would have Ghostscript run what is in an EPS file, whatever the file is called."""
    Image.new("L", (32, 32)).save(folder / "a.eps")
    (folder / "a.eps").rename(folder / "a.png")
    for limit in (1, 0):
        with pytest.raises(DataError, match=r"1 of 31 files .*a.png: no image"):
            load(folder, limit)
