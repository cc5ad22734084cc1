"""Splits of a full grid of factors: images of chosen factors are the images at their place in the grid."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import vaezoo
from vaezoo.data import Factor, Loader, assemble
from vaezoo.data.grid import GridSplit
from vaezoo.data.stored import BitImages, ByteImages, FileImages
from vaezoo.errors import DataError

AXES = (
    Factor("shape", 3, "categorical"),
    Factor("scale", 2, "ordinal"),
    Factor("turn", 4, "circular"),
)
GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(256, (48, 8, 8, 3), generator=GENERATOR, dtype=torch.uint8)
COMBINATIONS = torch.tensor(list(itertools.product(range(3), range(2), range(4))))


def pool(instances=1):
    return GridSplit(ByteImages(PIXELS[: 24 * instances], (3, 8, 8)), AXES, instances=instances, label=0)


def image(number):
    return PIXELS[number].permute(2, 0, 1).float() / 255


def test_every_combination_renders_the_image_at_its_place():
    grid = pool()
    rendered = grid.render(COMBINATIONS)
    assert rendered.dtype == torch.float32
    for number, row in enumerate(COMBINATIONS):
        assert torch.equal(rendered[number], image(number))
        assert torch.equal(grid.render(row[None])[0], image(number))
        assert torch.equal(grid.factors[number], row)
    assert torch.equal(grid.labels, COMBINATIONS[:, 0])
    assert torch.equal(grid.render(COMBINATIONS.byte()), rendered)  # no overflow in small integers


def test_splits_share_the_grid_and_part_its_images():
    data = assemble(3, pool(), validation=4, test=5, factors=AXES)
    assert [len(split) for split in data.splits.values()] == [15, 4, 5]
    seen = []
    for split in data.splits.values():
        images = split.batch(torch.arange(len(split)))
        for k, row in enumerate(split.factors):
            number = int(row[0] * 8 + row[1] * 4 + row[2])
            assert torch.equal(images[k], image(number))
            seen.append(number)
        assert torch.equal(split.render(COMBINATIONS), pool().render(COMBINATIONS))  # all, not only its own
        assert torch.equal(split.view(torch.tensor([3, 1])).factors, split.factors[[3, 1]])
    assert sorted(seen) == list(range(24))


def test_a_shuffled_epoch_reads_what_is_there():
    data = assemble(3, pool(), validation=4, test=5, factors=AXES)
    read = torch.cat(list(Loader(data.train, 5, seed=1).epoch(0)))
    direct = data.train.batch(torch.arange(15))
    assert {x.numpy().tobytes() for x in read} == {x.numpy().tobytes() for x in direct}
    assert not torch.equal(read, direct)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_grid_in_a_file_is_the_grid_in_memory(tmp_path, workers):
    (tmp_path / "images").write_bytes(b"before" + PIXELS[:24].numpy().tobytes())
    stored = GridSplit(FileImages(tmp_path / "images", 6, (24, 8, 8, 3)), AXES, label=0)
    there, here = (assemble(3, split, validation=4, test=5, factors=AXES) for split in (stored, pool()))
    assert (there.train.resident, here.train.resident) == (False, True)
    assert there.fingerprint() == here.fingerprint()
    assert torch.equal(there.test.render(COMBINATIONS), here.test.render(COMBINATIONS))
    batches = zip(Loader(there.train, 5, workers=workers).epoch(0), Loader(here.train, 5).epoch(0))
    assert all(torch.equal(a, b) for a, b in batches)


def test_an_instance_is_drawn_uniformly_and_by_the_seed():
    grid = pool(instances=2)
    assert torch.equal(grid.factors, COMBINATIONS.repeat_interleave(2, 0))
    factors = torch.tensor([[1, 0, 2]]).expand(10_000, 3)  # images 20 and 21

    def second(seed):
        torch.manual_seed(seed)
        rendered = grid.render(factors)
        first, other = ((rendered == image(number)).flatten(1).all(1) for number in (20, 21))
        assert (first ^ other).all()
        return other

    chosen = second(0)
    assert abs(chosen.double().mean() - 0.5) < 4 * 0.5 / 100  # four standard errors
    assert torch.equal(second(0), chosen)
    assert not torch.equal(second(1), chosen)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([[0, 0, 4]], "factor turn has the values 0 to 3, not 4 to 4"),
        ([[0, -1, 0], [0, 1, 0]], "factor scale has the values 0 to 1, not -1 to 1"),
        ([[0, 0]], r"must be \[B, 3\] \(shape, scale, turn\), not \[1, 2\]"),
        ([0, 0, 0], r"not \[3\]"),
    ],
)
def test_factors_outside_the_grid_are_refused(factors, message):
    with pytest.raises(DataError, match=message):
        pool().render(torch.tensor(factors))


def test_a_grid_of_another_size_is_refused():
    with pytest.raises(DataError, match="a grid of 24 images cannot be made of 23"):
        GridSplit(ByteImages(PIXELS[:23], (3, 8, 8)), AXES)


def test_only_binary_images_can_be_binarised():
    bits = torch.randint(256, (24, 8), generator=GENERATOR, dtype=torch.uint8)
    split = GridSplit(BitImages(bits, (1, 8, 8)), AXES)
    for noise in (None, torch.Generator()):
        assert torch.equal(split.binarized(noise).batch(torch.arange(24)), split.batch(torch.arange(24)))
        with pytest.raises(DataError, match="cannot be binarised"):
            pool().binarized(noise)


def test_batches_and_rendered_images_stay_on_the_device():
    with FakeTensorMode():
        for images in (
            ByteImages(torch.zeros(48, 8, 8, 3, dtype=torch.uint8), (3, 8, 8)),
            BitImages(torch.zeros(48, 8, dtype=torch.uint8), (1, 8, 8)),
        ):
            data = assemble(0, GridSplit(images, AXES, instances=2), validation=4, test=5).to("cuda")
            indices = torch.zeros(7, dtype=torch.long, device="cuda")
            factors = torch.zeros(7, 3, dtype=torch.long, device="cuda")
            for result in (data.train.batch(indices), data.test.render(factors), data.test.factors):
                assert result.device.type == "cuda"
            assert data.train._images is data.test._images


def test_evaluation_draws_the_factors_over_the_whole_grid():
    data = assemble(0, pool(), validation=4, test=5, factors=AXES)
    model = vaezoo.create("vae", latent_dim=3, image_shape=(3, 8, 8))
    reports = [vaezoo.evaluate(model, data, n=5, axes=["disentanglement"]) for _ in range(2)]
    metrics = reports[0].metrics
    assert reports[0].to_dict() == reports[1].to_dict()
    assert {"disentanglement/beta_vae_score", "disentanglement/factor_vae_score"} <= set(metrics)
    assert "factors drawn uniformly and independently" in metrics["disentanglement/mig"].note
    # All 24 combinations, although the test split has five images.
    assert metrics["disentanglement/mig"].n == 10_000
