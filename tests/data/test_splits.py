import json
import math

import pytest
import torch

from vaezoo.data import Factor, ImageData, Loader, ResidentSplit, assemble, load_data
from vaezoo.errors import DataError


def images(n, channels=1, side=4, seed=0):
    return torch.randint(
        0, 256, (n, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def numbered(n):
    """Images that say their own number (up to 65,535) in their first two pixels."""
    pixels = torch.zeros(n, 1, 1, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(n) // 256, torch.arange(n) % 256
    return pixels


def numbers(batch):
    return (batch[:, 0, 0] * 255).round().long() @ torch.tensor([256, 1])


def everything(split):
    return split.batch(torch.arange(len(split), device=split.device))


def test_batch_gathers_and_scales():
    pixels = images(10, channels=3)
    split = ResidentSplit(pixels, torch.arange(10), torch.arange(20).view(10, 2))
    batch = split.batch(torch.tensor([7, 2, 7]))
    assert batch.dtype == torch.float32
    assert torch.equal(batch, pixels[[7, 2, 7]].float() / 255)
    assert split.image_shape == (3, 4, 4)
    assert split.resident
    assert split.device == torch.device("cpu")


def test_views_of_views_keep_images_labels_and_factors_together():
    n = 300
    split = ResidentSplit(numbered(n), torch.arange(n), torch.stack([torch.arange(n)] * 2, 1))
    view = split.view(torch.randperm(n)[:200]).view(torch.arange(150, 50, -1)).first(40)
    assert len(view) == 40
    for part in (view, view.to("cpu"), view.binarized(None)):
        assert torch.equal(part.labels, numbers(split.batch(part.labels)))
        assert torch.equal(part.factors[:, 1], part.labels)
    assert torch.equal(numbers(everything(view)), view.labels)
    assert view._images.data_ptr() == split._images.data_ptr()  # no copy


def test_to_another_device_takes_the_images_of_the_split_only():
    split = ResidentSplit(numbered(300), torch.arange(300)).view(torch.arange(5))
    moved = split.to("meta")
    assert moved._images.shape[0] == len(moved) == 5
    assert moved.device.type == moved.labels.device.type == "meta"


def test_subset_is_drawn_without_replacement_and_by_the_seed():
    split = ResidentSplit(numbered(100), torch.arange(100))
    subset = split.subset(30, seed=1)
    assert len(subset.labels.unique()) == 30
    assert torch.equal(subset.labels, split.subset(30, seed=1).labels)
    assert not torch.equal(subset.labels, split.subset(30, seed=2).labels)
    assert torch.equal(split.subset(1000, seed=1).labels.sort().values, torch.arange(100))
    for method in (lambda n: split.subset(n, 0), split.first):
        with pytest.raises(DataError, match="at least 1 image, not 0"):
            method(0)


def test_carved_splits_are_disjoint_complete_and_by_the_seed():
    a, b, c = (load_data(numbered(1000), seed=seed) for seed in (0, 0, 1))
    parts = [numbers(everything(split)) for split in a.splits.values()]
    assert [len(part) for part in parts] == [810, 90, 100]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    assert torch.equal(parts[2], numbers(everything(b.test)))
    assert not torch.equal(parts[2], numbers(everything(c.test)))


def test_validation_by_number_and_never_from_test():
    pool, test = ResidentSplit(numbered(100)), ResidentSplit(numbered(300).flip(0)[:50])
    data = assemble(0, pool, validation=7, test=test)
    assert [len(split) for split in data.splits.values()] == [93, 7, 50]
    held = torch.cat([numbers(everything(data.train)), numbers(everything(data.validation))])
    assert torch.equal(held.sort().values, torch.arange(100))
    assert data.test is test


@pytest.mark.parametrize(
    ("options", "message"),
    [({"validation": 90}, "validation=90 of 90 images leaves none"), ({"test": 1.0}, "test=1.0 of 100")],
)
def test_a_share_that_leaves_nothing_for_train_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        load_data(numbered(100), **options)


def test_splits_of_different_shapes_are_refused():
    with pytest.raises(DataError, match=r"train are \(1, 4, 4\) but those of test are \(3, 4, 4\)"):
        assemble(0, ResidentSplit(images(10)), validation=2, test=ResidentSplit(images(3, channels=3)))


def test_images_and_labels_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="10 images but 9 labels"):
        ResidentSplit(images(10), torch.arange(9))
    with pytest.raises(DataError, match="uint8"):
        ResidentSplit(images(10).float())


LEVELS = torch.arange(256, dtype=torch.uint8).view(16, 16)  # every grey level


def grey(n=3000):
    return LEVELS.expand(n, 1, 16, 16).contiguous()


def assert_bernoulli(draws):
    """Every pixel is 0 or 1, and its mean within 4 standard errors of the grey level."""
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    level = LEVELS.double() / 255
    error = (draws.double().mean((0, 1)) - level).abs()
    assert (
        error <= 4.5 * (level * (1 - level) / len(draws)).sqrt()
    ).all()  # 256 levels: 4.5 is missed once in 600
    pooled = (draws.double().mean((0, 1)) - level).mean().abs()
    assert pooled <= 4 * (level * (1 - level)).mean().sqrt() / math.sqrt(256 * len(draws))


def test_dynamic_binarisation_draws_train_anew_from_torchs_generator():
    data = load_data(grey(), binarize="dynamic", validation=600, test=600)
    torch.manual_seed(0)
    first = everything(data.train)
    second = everything(data.train)
    assert_bernoulli(first)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, everything(data.train))
    for split in (data.validation, data.test):
        assert torch.equal(everything(split), everything(split))
        assert_bernoulli(everything(split))
    # A part of train is as dynamic as train.
    part = data.train.subset(50, seed=0)
    assert not torch.equal(everything(part), everything(part))


def test_static_binarisation_is_drawn_once_from_the_seed():
    options = {"validation": 600, "test": 600}
    a, b, c = (load_data(grey(), binarize="static", seed=seed, **options) for seed in (0, 0, 1))
    for name, split in a.splits.items():
        assert_bernoulli(everything(split))
        assert torch.equal(everything(split), everything(split))
        assert torch.equal(everything(split), everything(b.splits[name]))
        assert not torch.equal(everything(split), everything(c.splits[name]))
    assert not torch.equal(everything(a.validation), everything(a.test))


def test_binarisation_does_not_touch_the_global_generator_and_is_recorded():
    state = torch.get_rng_state()
    headers = [load_data(grey(50), binarize=b).header() for b in ("none", "static", "dynamic")]
    assert torch.equal(torch.get_rng_state(), state)
    assert [header["binarize"] for header in headers] == ["none", "static", "dynamic"]
    assert len({header["fingerprint"] for header in headers}) == 3


def test_header_is_json_and_loads_the_same_data_again():
    data = load_data("digits", binarize="static", seed=3, validation=100)
    header = json.loads(json.dumps(data.header()))
    assert header["sizes"] == {"train": 1517, "validation": 100, "test": 180}
    assert header["options"] == {"validation": 100, "test": 0.1}
    again = load_data(header["name"], binarize=header["binarize"], seed=header["seed"], **header["options"])
    assert again.header() == header


def test_fingerprint_changes_with_data_labels_and_splits_only():
    pixels = images(100)

    def fingerprint(change=lambda x: x, seed=0):
        return load_data(change(pixels.clone()), seed=seed).header()["fingerprint"]

    def one_pixel(x):
        x[:, 0, 0, 0] ^= 1
        return x

    assert fingerprint() == fingerprint()
    assert fingerprint() == fingerprint(lambda x: x.numpy())
    assert fingerprint() != fingerprint(one_pixel)
    assert fingerprint() != fingerprint(seed=1)
    train, test = (
        ResidentSplit(pixels, torch.zeros(100).long()),
        ResidentSplit(pixels, torch.ones(100).long()),
    )
    swapped = [
        ImageData("", a, b, b, a.image_shape).header()["fingerprint"]
        for a, b in ((train, test), (test, train))
    ]
    assert swapped[0] != swapped[1]
    assert len(swapped[0]) == 16


def test_data_moves_as_a_whole():
    data = load_data("digits")
    moved = data.to("meta")
    assert {split.device.type for split in moved.splits.values()} == {"meta"}
    assert {split.device.type for split in data.splits.values()} == {"cpu"}
    assert (moved.name, moved.classes, moved.options) == (data.name, data.classes, data.options)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("binarize", ["none", "static"])
def test_cuda_has_the_same_batches_and_the_same_header(binarize):
    here, there = (load_data("digits", binarize=binarize, device=d) for d in ("cpu", "cuda"))
    assert there.train.batch(torch.arange(5, device="cuda")).is_cuda
    for a, b in zip(Loader(here.train, 64).epoch(2), Loader(there.train, 64).epoch(2)):
        assert torch.equal(a, b.cpu())
    assert here.header() == there.header()


def test_factor_is_a_value():
    assert Factor("x", 3, "ordinal") == Factor("x", 3, "ordinal") != Factor("x", 3, "circular")
