import pickle

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vaezoo.data import Factor, load_data
from vaezoo.data.files import to_uint8
from vaezoo.errors import DataError, VaezooError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (50, 3, 5, 6), dtype=np.uint8)
LABELS = RANDOM.integers(0, 10, 50)


def save(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix in (".h5", ".hdf5"):
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    elif path.suffix == ".pt":
        torch.save({name: torch.as_tensor(array) for name, array in arrays.items()}, path)
    else:
        save_file({name: torch.as_tensor(array).contiguous() for name, array in arrays.items()}, path)
    return path


def rows(data):
    """All images of all splits with their labels, as a set."""
    splits = data.splits.values()
    return {
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.batch(torch.arange(len(split))).numpy(), split.labels)
    }


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5", ".pt", ".safetensors"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_round_trip(tmp_path, suffix, layout):
    stored = PIXELS if layout == "NCHW" else PIXELS.transpose(0, 2, 3, 1).copy()
    data = load_data(save(tmp_path / f"file{suffix}", images=stored, labels=LABELS), seed=3)
    assert data.image_shape == (3, 5, 6)
    assert [len(split) for split in data.splits.values()] == [41, 4, 5]
    expected = {
        (image.tobytes(), int(label))
        for image, label in zip((torch.from_numpy(PIXELS).float() / 255).numpy(), LABELS)
    }
    assert rows(data) == expected
    header = data.header()
    again = load_data(header["name"], seed=header["seed"], **header["options"])
    assert again.header() == header


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_many_chunks_are_one_image_after_the_other(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("vaezoo.data.files.CHUNK", 7 * 90)
    for images in (PIXELS, PIXELS.astype(np.int64), PIXELS / 255, PIXELS.astype(">f4") / 255):
        data = load_data(save(tmp_path / f"file{suffix}", images=images, labels=LABELS))
        assert rows(data) == rows(load_data(save(tmp_path / "whole.pt", images=PIXELS, labels=LABELS)))


def test_splits_of_a_file_are_kept(tmp_path):
    path = save(
        tmp_path / "x.npz",
        x_train=PIXELS[:30],
        y_train=LABELS[:30, None],
        x_test=PIXELS[30:],
        y_test=LABELS[30:, None],
    )
    data = load_data(path)
    assert torch.equal(data.test.batch(torch.arange(20)), torch.from_numpy(PIXELS[30:]) / 255)
    assert data.test.labels.tolist() == LABELS[30:].tolist()
    assert [len(split) for split in data.splits.values()] == [27, 3, 20]
    path = save(
        tmp_path / "y.npz", train_images=PIXELS[:30], val_images=PIXELS[30:35], test_images=PIXELS[35:]
    )
    data = load_data(path)
    assert [len(split) for split in data.splits.values()] == [30, 5, 15]
    assert torch.equal(data.validation.batch(torch.arange(5)), torch.from_numpy(PIXELS[30:35]) / 255)


def test_factors_as_dsprites_has_them(tmp_path):
    images = RANDOM.integers(0, 2, (60, 4, 4), dtype=np.uint8)
    values = np.stack([np.zeros(60), np.arange(60) % 3, np.arange(60) % 4 * 10], 1).astype(np.int64)
    path = tmp_path / "dsprites.npz"
    np.savez(path, imgs=images, latents_classes=values, latents_values=values / 2, metadata={"a": "pickle"})
    data = load_data(path, factors={"color": "categorical", "shape": "categorical", "scale": "ordinal"})
    assert data.factors == (
        Factor("color", 1, "categorical"),
        Factor("shape", 3, "categorical"),
        Factor("scale", 4, "ordinal"),
    )
    assert data.train.factors.dtype == torch.int64
    # Images stay with their factors, 0 and 1 become black and white.
    known = {(image.tobytes(), *row) for image, row in zip(images, values)}
    batch = data.train.batch(torch.arange(len(data.train)))
    assert set(batch.unique().tolist()) == {0.0, 1.0}
    for image, row in zip(batch, data.train.factors):
        assert (image[0].byte().numpy().tobytes(), 0, int(row[1]), int(row[2]) * 10) in known
    assert [factor.kind for factor in load_data(path).factors] == ["categorical"] * 3


def test_factors_as_shapes3d_has_them(tmp_path):
    hue, turn = RANDOM.integers(0, 10, 50) / 10, RANDOM.uniform(-30, 30, 50)
    path = save(tmp_path / "3dshapes.h5", images=PIXELS, labels=np.stack([hue, turn], 1))
    data = load_data(path, factors={"hue": "circular", "orientation": "continuous"})
    assert data.factors == (Factor("hue", 10, "circular"), Factor("orientation", 0, "continuous"))
    assert data.train.factors.dtype == torch.float32
    table = torch.cat([split.factors for split in data.splits.values()])
    torch.testing.assert_close(table[:, 0].sort().values, torch.from_numpy(hue * 10).float().sort().values)
    torch.testing.assert_close(table[:, 1].sort().values, torch.from_numpy(turn).float().sort().values)
    assert [factor.kind for factor in load_data(path).factors] == ["continuous"] * 2


def test_levels_of_every_type():
    levels = torch.arange(256).view(4, 8, 8)
    expected = levels.byte().unsqueeze(1)
    for images in (
        levels,
        levels.byte(),
        levels.short(),
        levels / 255,
        levels.double() / 255,
        levels.bfloat16() / 255,
    ):
        same = to_uint8(images, None, "x")
        assert same.dtype == torch.uint8
        assert (same.int() - expected.int()).abs().max() <= (1 if images.dtype == torch.bfloat16 else 0)
    assert torch.equal(to_uint8(levels.numpy().astype(np.uint16), None, "x"), expected)
    assert torch.equal(to_uint8(levels.numpy()[::-1], None, "x"), expected.flip(0))
    for binary in (levels % 2, (levels % 2).byte(), levels % 2 == 1, (levels % 2).float()):
        assert torch.equal(to_uint8(binary, None, "x").unique(), torch.tensor([0, 255], dtype=torch.uint8))
    dark = torch.full((2, 3, 3), 1 / 255)  # a float is never taken for a binary image
    assert to_uint8(dark, None, "x").unique().tolist() == [1]
    between = torch.tensor([99.4, 99.6]).expand(2, 1, 2) / 255  # rounded, not cut off
    assert to_uint8(between, None, "x")[0].flatten().tolist() == [99, 100]


def test_images_of_the_caller_are_not_changed():
    binary = torch.ones(30, 4, 4, dtype=torch.uint8)
    load_data(binary, binarize="static")
    assert binary.unique().tolist() == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.001])
def test_the_first_image_out_of_range_is_named(value):
    images = torch.zeros(40, 1, 4, 4)
    images[17, 0, 2, 1] = images[23] = value
    with pytest.raises(
        DataError, match=r"image 17 of the array has values from .*floats must be in \[0, 1\]"
    ):
        load_data(images)
    with pytest.raises(DataError, match=r"image 3 .* from 0 to 256; integers must be in 0..255"):
        load_data(torch.tensor([0, 1, 2, 256, 300])[:, None, None].expand(5, 4, 4) * torch.eye(4).long())


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((9, 3, 5, 3), {}, "may be NCHW as well as NHWC; give layout=NCHW or NHWC"),
        ((9, 4, 5, 4), {}, "has no axis of 1 or 3 channels"),
        ((9, 3, 5, 4), {"layout": "NHWC"}, "layout=NHWC does not fit"),
        ((9, 5), {}, r"has shape \[9, 5\]"),
        ((0, 5, 5), {}, r"has shape \[0, 5, 5\]"),
        ((9, 3, 5, 4), {"layout": "CHWN"}, "'NCHW' or 'NHWC'"),
        ((9, 3, 5, 4), {"layuot": "NCHW"}, "did you mean 'layout'"),
    ],
)
def test_shapes_that_are_no_images_or_leave_the_layout_open(shape, options, message):
    with pytest.raises(VaezooError, match=message):
        load_data(torch.zeros(shape), **options)


def test_a_layout_settles_what_the_shape_leaves_open():
    images = torch.zeros(9, 3, 5, 3)
    assert load_data(images, layout="NCHW").image_shape == (3, 5, 3)
    assert load_data(images, layout="NHWC").image_shape == (3, 3, 5)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"pictures": PIXELS}, {}, "holds no images; they are looked for under images, imgs, x"),
        (
            {"images": PIXELS, "labels": LABELS[:40]},
            {},
            r"labels of .* have shape \[40\], but there are 50 images",
        ),
        ({"images": PIXELS, "labels": LABELS / 2}, {}, r"must be integers \[N\]"),
        ({"images": PIXELS}, {"factors": {"a": "ordinal"}}, "no table of factors"),
        (
            {"images": PIXELS, "factors": np.zeros((50, 2))},
            {"factors": {"a": "ordinal"}},
            "1 factors are declared",
        ),
        ({"images": PIXELS, "factors": np.zeros((50, 1))}, {"factors": {"a": "cyclic"}}, "factors.*cyclic"),
        (
            {"images": PIXELS, "factors": np.full((50, 1), np.nan)},
            {},
            "factor_0 of .* is not finite for image 0",
        ),
        ({"images": np.array([["a"] * 4] * 4)[None]}, {}, "holds <U1, not numbers"),
    ],
)
def test_contents_that_do_not_fit(tmp_path, arrays, options, message):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(VaezooError, match=message):
        load_data(path, **options)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    path = save(tmp_path / f"x{suffix}", images=PIXELS)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"no such file format")
    with pytest.raises(DataError, match=f"x{suffix} could not be read"):
        load_data(path)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_pickles_are_refused_and_not_run(tmp_path):
    target = tmp_path / "written by a pickle"
    bomb = Bomb(target)
    array = np.empty(30, dtype=object)
    array[:] = bomb
    np.savez(tmp_path / "a.npz", images=array)
    torch.save({"images": torch.zeros(30, 4, 4), "labels": bomb}, tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(pickle.dumps(bomb))
    (tmp_path / "d.npz").write_bytes(pickle.dumps(bomb))
    for name in ("a.npz", "b.pt", "c.pt", "d.npz"):
        with pytest.raises(DataError, match=f"{name} could not be read"):
            load_data(tmp_path / name)
        assert not target.exists()
    pickle.loads(pickle.dumps(bomb)).close()
    assert target.exists()  # the bomb is a real one
