"""Loaders of published files, on files of the same formats that show small grids."""

import gzip
import io
import itertools
import math
import pickle
import tarfile
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from vaezoo.data import load_data, published
from vaezoo.data.published import (
    CARS3D,
    CARS3D_FILE,
    DSPRITES,
    DSPRITES_FILE,
    MPI3D,
    SHAPES3D,
    SHAPES3D_FILE,
    SMALLNORB,
    SMALLNORB_PARTS,
)
from vaezoo.errors import DataError

RANDOM = np.random.default_rng(0)
SMALL = {
    "DSPRITES": (3, 2, 4, 2, 3),
    "SHAPES3D": (3, 2, 2, 2, 2, 3),
    "MPI3D": (2, 3, 2, 1, 2, 2, 3),
    "CARS3D": (2, 3, 4),
    "SMALLNORB": (2, 3, 4, 2),
}
INSTANCES = 4


@pytest.fixture(autouse=True)
def _small_grids(monkeypatch):
    for name, sizes in SMALL.items():
        axes = zip(getattr(published, name), sizes)
        monkeypatch.setattr(published, name, tuple(replace(axis, size=size) for axis, size in axes))
    monkeypatch.setattr(published, "SMALLNORB_INSTANCES", INSTANCES)


def combinations(name):
    return np.array(list(itertools.product(*map(range, SMALL[name]))))


def noise(count, *shape, levels=256):
    return RANDOM.integers(0, levels, (count, *shape), dtype=np.uint8)


def as_batch(images):
    """uint8 [N, H, W] or [N, H, W, 3] as a batch."""
    images = images[..., None] if images.ndim == 3 else images
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255


def check(data, name, expected):
    """Images of all combinations are the expected ones, and each is in one split, with its factors."""
    every = torch.from_numpy(combinations(name))
    assert [factor.size for factor in data.factors] == list(SMALL[name])
    for split in data.splits.values():
        assert torch.equal(split.render(every), expected)
    seen = []
    for split in data.splits.values():
        numbers = np.ravel_multi_index(tuple(split.factors.T.numpy()), SMALL[name])
        assert torch.equal(split.batch(torch.arange(len(split))), expected[numbers])
        seen += numbers.tolist()
    assert sorted(seen) == list(range(len(expected)))
    header = data.header()
    assert load_data(header["name"], seed=header["seed"], **header["options"]).header() == header


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def write_dsprites(folder, **changes):
    classes = combinations("DSPRITES")
    images = noise(len(classes), 64, 64, levels=2)
    metadata = np.array({"title": Bomb(folder / "written by a pickle")}, dtype=object)
    arrays = {
        "imgs": images,
        "latents_classes": np.concatenate([np.zeros((len(classes), 1), int), classes], 1),
        "latents_values": classes / 2,
        "metadata": metadata,
        **changes,
    }
    np.savez_compressed(folder / DSPRITES_FILE, **arrays)
    return images


def test_dsprites(tmp_path):
    images = write_dsprites(tmp_path)
    data = load_data("dsprites", path=tmp_path / DSPRITES_FILE)
    assert data.image_shape == (1, 64, 64)
    check(data, "DSPRITES", as_batch(images * 255))
    assert torch.equal(data.train.labels, data.train.factors[:, 0])
    assert data.classes == ("square", "ellipse", "heart")
    binarized = load_data("dsprites", path=tmp_path, binarize="dynamic")
    assert torch.equal(binarized.train.batch(torch.arange(9)), data.train.batch(torch.arange(9)))
    # The pickle in the file is a real one, and was not run.
    target = tmp_path / "written by a pickle"
    assert not target.exists()
    with np.load(tmp_path / DSPRITES_FILE, allow_pickle=True) as content:
        content["metadata"].item()["title"].close()
    assert target.exists()


def test_dsprites_by_its_path_and_by_its_name_agree(tmp_path):
    """As a file of any origin it has a factor more, the colour, which has one value."""
    write_dsprites(tmp_path)
    by_name = load_data("dsprites", path=tmp_path)
    by_path = load_data(tmp_path / DSPRITES_FILE)
    assert [factor.size for factor in by_path.factors] == [1, *(f.size for f in by_name.factors)]
    factors = by_path.train.factors
    assert torch.equal(by_name.train.render(factors[:, 1:]), by_path.train.batch(torch.arange(len(factors))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgs": np.zeros((9, 64, 64), np.uint8)}, r"holds images \[9, 64, 64\], not \[144, 64, 64\]"),
        ({"imgs": np.full((144, 64, 64), 255, np.uint8)}, "a pixel of 255, and all should be 0 or 1"),
        ({"imgs": np.zeros((144, 64, 64))}, "holds float64"),
        ({"latents_classes": np.zeros((144, 6))}, r"not in the order of their factors \(shape\)"),
        ({"latents_classes": np.zeros((144, 5))}, r"has factors \[144, 4\], not \[144, 5\]"),
        ({"latents_classes": np.zeros(144)}, "could not be read"),
    ],
)
def test_other_contents_of_dsprites_are_refused(tmp_path, changes, message):
    write_dsprites(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        load_data("dsprites", path=tmp_path)


def test_images_in_another_order_are_refused(tmp_path):
    classes = np.concatenate([np.zeros((144, 1), int), combinations("DSPRITES")], 1)
    for wrong in (classes[::-1], RANDOM.permutation(classes)):
        write_dsprites(tmp_path, latents_classes=wrong)
        with pytest.raises(DataError, match="not in the order"):
            load_data("dsprites", path=tmp_path)


def write_shapes3d(folder, labels=None, compression="gzip"):
    values = combinations("SHAPES3D") * [0.1, 0.1, 0.1, 0.07, 1, 4.3] - [0, 0, 0, -0.75, 0, 30]
    images = noise(len(values), 64, 64, 3)
    with h5py.File(folder / SHAPES3D_FILE, "w") as file:
        file.create_dataset("images", data=images, compression=compression)
        file["labels"] = values if labels is None else labels
    return images


@pytest.mark.parametrize("options", [{}, {"memory_limit_gb": 0, "unpack": True}])
def test_shapes3d(tmp_path, options):
    images = write_shapes3d(tmp_path)
    data = load_data("shapes3d", path=tmp_path / SHAPES3D_FILE, **options)
    assert data.image_shape == (3, 64, 64)
    assert data.train.resident == (not options)
    check(data, "SHAPES3D", as_batch(images))
    with pytest.raises(DataError, match="cannot be binarised"):
        load_data("shapes3d", path=tmp_path, binarize="static", **options)


def test_shapes3d_that_do_not_fit_or_are_damaged_are_refused(tmp_path):
    write_shapes3d(tmp_path)
    with pytest.raises(DataError, match=r"memory_limit_gb=0; raise it, or pass unpack=True"):
        load_data("shapes3d", path=tmp_path, memory_limit_gb=0)
    path = tmp_path / SHAPES3D_FILE
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"3dshapes\.h5 could not be read"):
        load_data("shapes3d", path=path)
    write_shapes3d(tmp_path, labels=np.zeros((144, 6)))
    with pytest.raises(DataError, match="not in the order of their factors"):
        load_data("shapes3d", path=path)
    write_shapes3d(tmp_path, labels=np.full((144, 6), np.nan))
    with pytest.raises(DataError, match="not in the order of their factors"):
        load_data("shapes3d", path=path)


@pytest.mark.parametrize("variant", ["toy", "realistic", "real"])
@pytest.mark.parametrize("compressed", [True, False])
def test_mpi3d(tmp_path, variant, compressed):
    images = noise(math.prod(SMALL["MPI3D"]), 64, 64, 3)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / f"mpi3d_{variant}.npz", images=images)
    data = load_data("mpi3d", variant=variant, path=tmp_path)
    check(data, "MPI3D", as_batch(images))
    if compressed:
        with pytest.raises(DataError, match="unpack=True"):
            load_data("mpi3d", variant=variant, path=tmp_path, memory_limit_gb=0)
    streamed = load_data("mpi3d", variant=variant, path=tmp_path, memory_limit_gb=0, unpack=compressed)
    assert not streamed.train.resident
    assert streamed.header()["fingerprint"] == data.header()["fingerprint"]
    np.save(tmp_path / "images.npy", images)
    extracted = load_data("mpi3d", path=tmp_path / "images.npy", memory_limit_gb=0)
    assert extracted.header()["fingerprint"] == data.header()["fingerprint"]


def test_the_first_release_of_mpi3d_is_refused(tmp_path):
    np.savez(tmp_path / "mpi3d_toy.npz", images=noise(64, 64, 64, 3))
    with pytest.raises(
        DataError, match=r"mpi3d_toy.npz holds images \[64, 64, 64, 3\], not \[144, 64, 64, 3\]"
    ):
        load_data("mpi3d", path=tmp_path)


def car_content(images):
    """A model's file: images [128, 128, 3, azimuth, elevation], and the masks that are there too."""
    stream = io.BytesIO()
    savemat(stream, {"im": images, "mask": images[:, :, 0] > 9}, do_compression=True)
    return stream.getvalue()


def write_cars(folder, archive):
    elevations, azimuths, cars = SMALL["CARS3D"]
    # Levels that differ between images and not within one, which no filter changes.
    levels = np.arange(elevations * azimuths * cars * 3, dtype=np.uint8).reshape(
        elevations, azimuths, cars, 3
    )
    files = {}
    for car in range(cars):
        flat = levels[:, :, car].transpose(2, 1, 0)  # [3, azimuth, elevation]
        content = car_content(np.broadcast_to(flat, (128, 128, *flat.shape)))
        files[f"car_{[3, 20, 100, 101][car]:03}_mesh.mat"] = content
    if not archive:
        (folder / "cars").mkdir()
        for name, content in files.items():
            (folder / "cars" / name).write_bytes(content)
        (folder / "cars" / "list.txt").write_text("car_003_mesh\n")
        return folder / "cars", levels
    with tarfile.open(folder / CARS3D_FILE, "w:gz") as tar:
        for name, content in {
            "list.txt": b"",
            "../car_999.mat": b"",
            **dict(reversed(files.items())),
        }.items():
            member = tarfile.TarInfo(f"data/cars/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder / CARS3D_FILE, levels


@pytest.mark.parametrize("archive", [True, False])
def test_cars3d(tmp_path, archive):
    path, levels = write_cars(tmp_path, archive)
    before = sorted(tmp_path.rglob("*"))
    data = load_data("cars3d", path=path)
    expected = torch.from_numpy(levels.reshape(-1, 3, 1, 1)).float() / 255
    check(data, "CARS3D", expected.expand(-1, -1, 64, 64))
    assert sorted(tmp_path.rglob("*")) == before  # nothing is extracted
    found = load_data("cars3d", root=tmp_path)
    assert found.header()["fingerprint"] == data.header()["fingerprint"]


def test_other_cars_are_refused(tmp_path):
    path, _ = write_cars(tmp_path, archive=False)
    file = path / "car_020_mesh.mat"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])
    with pytest.raises(DataError, match=r"car_020_mesh\.mat could not be read"):
        load_data("cars3d", path=path)
    file.write_bytes(car_content(noise(128, 128, 3, 4, 2)))
    with pytest.raises(DataError, match=r"holds uint8 \[128, 128, 3, 4, 2\] under 'im', not .* 3, 3, 2\]"):
        load_data("cars3d", path=path)
    file.unlink()
    with pytest.raises(DataError, match=r"holds 3 files car_NNN_mesh\.mat, and Cars3D has 4"):
        load_data("cars3d", path=path)
    (tmp_path / "archive.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"archive.tar.gz could not be read"):
        load_data("cars3d", path=tmp_path / "archive.tar.gz")


def test_images_are_resized_by_lanczos(tmp_path):
    """An independent filter: rows and columns, three lobes, wider by the factor of the size."""
    image = noise(96, 96, 3)
    scale = 96 / 64
    distance = ((np.arange(96) + 0.5) - (np.arange(64)[:, None] + 0.5) * scale) / scale
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    weights /= weights.sum(1, keepdims=True)
    across = np.clip(np.einsum("ij,hjc->hic", weights, image), 0, 255)
    expected = np.clip(np.einsum("ij,jwc->iwc", weights, across), 0, 255)
    resized = published._resized(image)
    assert resized.shape == (64, 64, 3)
    assert np.abs(resized - expected).max() < 2  # rounded twice
    grey = np.asarray(Image.fromarray(image[:, :, 0]))
    assert np.array_equal(published._resized(grey), resized[:, :, 0])


def test_cars_stand_upright():
    images = np.zeros((128, 128, 3, 3, 2), np.uint8)
    images[64:] = 255  # the lower half
    resized = published._car(io.BytesIO(car_content(images)), 3, 2)
    assert resized.shape == (3, 2, 64, 64, 3)
    assert (resized[:, :, :24] == 0).all()
    assert (resized[:, :, 40:] == 255).all()


def norb_matrix(path, values, magic):
    sizes = [*values.shape, 1, 1][: max(3, values.ndim)]
    content = np.array([magic, values.ndim, *sizes], "<i4").tobytes() + values.tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def write_norb(folder, suffix=".mat", azimuth=lambda a: 2 * a, keep=slice(None)):
    """Images of one level each, left and right; returns the levels of the left [factors, instance]."""
    sizes = (*SMALL["SMALLNORB"], INSTANCES)
    shown = np.array(list(itertools.product(*map(range, sizes))))[keep]
    shown = RANDOM.permutation(shown)
    levels = np.zeros(sizes, np.uint8)
    levels.flat = np.arange(levels.size)
    for part, instances in zip(SMALLNORB_PARTS, ((0, 2), (1, 3))):
        rows = shown[np.isin(shown[:, 4], instances)]
        left = levels[tuple(rows.T)]
        pairs = np.broadcast_to(np.stack([left, 255 - left], 1)[:, :, None, None], (len(rows), 2, 96, 96))
        category, elevation, turn, lighting, instance = rows.T
        info = np.stack([instance, elevation, azimuth(turn), lighting], 1).astype("<i4")
        norb_matrix(folder / f"smallnorb-{part}-dat{suffix}", pairs, 0x1E3D4C55)
        norb_matrix(folder / f"smallnorb-{part}-cat{suffix}", category.astype("<i4"), 0x1E3D4C54)
        norb_matrix(folder / f"smallnorb-{part}-info{suffix}", info, 0x1E3D4C54)
    return levels


@pytest.mark.parametrize("suffix", [".mat", ".mat.gz"])
def test_smallnorb(tmp_path, suffix):
    levels = write_norb(tmp_path, suffix)
    data = load_data("smallnorb", path=tmp_path, test=50)
    assert data.image_shape == (1, 64, 64)
    assert data.classes == ("animal", "human", "airplane", "truck", "car")

    # Rendered: one of the toys of the combination. In the splits: every toy once.
    every = torch.from_numpy(combinations("SMALLNORB"))
    toys = torch.from_numpy(levels).reshape(len(every), INSTANCES)
    for split in data.splits.values():
        rendered = (255 * split.render(every)).round().byte()
        assert (rendered == rendered[:, :, :1, :1]).all()
        assert (rendered[:, 0, 0, :1] == toys).any(1).all()
    seen = []
    for split in data.splits.values():
        batch = (255 * split.batch(torch.arange(len(split)))).round().byte()[:, 0, 0, 0]
        numbers = np.ravel_multi_index(tuple(split.factors.T.numpy()), SMALL["SMALLNORB"])
        assert (batch[:, None] == toys[numbers]).any(1).all()
        assert torch.equal(split.labels, split.factors[:, 0])
        seen += batch.tolist()
    assert sorted(seen) == list(range(levels.size))
    again = load_data("smallnorb", path=tmp_path, test=50)
    assert again.header() == data.header()
    (tmp_path / "small_norb").mkdir()
    write_norb(tmp_path / "small_norb", suffix)
    assert load_data("smallnorb", root=tmp_path).header()["sizes"]["train"] > 100


def test_other_contents_of_smallnorb_are_refused(tmp_path):
    everything = slice(None)
    for changes in ({"keep": slice(1, None)}, {"azimuth": lambda a: a}, {"azimuth": lambda a: 4 * a}):
        write_norb(tmp_path, **{"keep": everything, **changes})
        with pytest.raises(DataError, match=r"do not hold one image of every toy from every view \(192\)"):
            load_data("smallnorb", path=tmp_path)

    write_norb(tmp_path)
    name = f"smallnorb-{SMALLNORB_PARTS[1]}-info.mat"
    content = (tmp_path / name).read_bytes()
    damaged = {
        "it has": content[:-3],
        "buffer is smaller": content[:5],
        "not a matrix of bytes or integers": b"\0" + content[1:],
    }
    for message, changed in damaged.items():
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(DataError, match=f"{name} could not be read: .*{message}"):
            load_data("smallnorb", path=tmp_path)
    norb_matrix(tmp_path / name, np.zeros((96, 3), "<i4"), 0x1E3D4C54)
    with pytest.raises(DataError, match=r"\[96, 2, 96, 96\], \[96\] and \[96, 3\], not pairs of images"):
        load_data("smallnorb", path=tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"smallNORB is not at .*{name}"):
        load_data("smallnorb", path=tmp_path)


def test_files_are_found_below_the_root_as_disentanglement_lib_has_them(tmp_path):
    write_dsprites(tmp_path)
    directly = load_data("dsprites", root=tmp_path)
    (tmp_path / "dsprites").mkdir()
    (tmp_path / DSPRITES_FILE).rename(tmp_path / "dsprites" / DSPRITES_FILE)
    below = load_data("dsprites", root=tmp_path)
    assert below.header() == directly.header()


def test_a_pickle_in_place_of_the_images_is_not_run(tmp_path):
    target = tmp_path / "written by a pickle"
    array = np.empty(144, dtype=object)
    array[:] = Bomb(target)
    for name in ("imgs", "latents_classes"):
        write_dsprites(tmp_path, **{name: array})
        with pytest.raises(DataError):
            load_data("dsprites", path=tmp_path)
    np.savez(tmp_path / "mpi3d_toy.npz", images=array)
    (tmp_path / SHAPES3D_FILE).write_bytes(pickle.dumps(Bomb(target)))
    for name in ("mpi3d", "shapes3d"):
        with pytest.raises(DataError):
            load_data(name, path=tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("axes", "sizes", "total"),
    [
        (DSPRITES, [3, 6, 40, 32, 32], 737_280),
        (SHAPES3D, [10, 10, 10, 8, 4, 15], 480_000),
        (MPI3D, [6, 6, 2, 3, 3, 40, 40], 1_036_800),
        (CARS3D, [4, 24, 183], 17_568),
        (SMALLNORB, [5, 9, 18, 6], 4_860),
    ],
)
def test_sizes_are_the_published_ones(axes, sizes, total):
    assert [axis.size for axis in axes] == sizes
    assert math.prod(sizes) == total
