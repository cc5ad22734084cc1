from pathlib import Path

import numpy as np
import pytest
import torch

from vaezoo.data import DATASETS, data_root, load_data
from vaezoo.errors import DataError, VaezooError


def test_names():
    expected = """cars3d celeba cifar10 digits dsprites fashion_mnist image_file image_folder mnist mpi3d
        shapes3d smallnorb sprites svhn webdataset"""
    assert DATASETS.names() == expected.split()


@pytest.mark.parametrize(
    ("source", "options", "parts"),
    [
        (
            "fashion_mnits",
            {},
            ["unknown data set 'fashion_mnits'", "did you mean 'fashion_mnist'", "sprites"],
        ),
        (
            "sprites",
            {"train_sise": 3},
            ["train_sise", "did you mean 'train_size'", "antialias", "color", "validation"],
        ),
        ("digits", {"validation": -1}, ["digits: validation", "-1", "greater than 0"]),
        ("digits", {"validation": float("nan")}, ["validation"]),
        ("sprites", {"size": "large"}, ["size='large'", "integer"]),
        (
            "digits",
            {"binarize": "dynamik"},
            ["unknown binarize 'dynamik'", "did you mean 'dynamic'", "static"],
        ),
        ("image_folder", {}, ["image_folder needs the option path", "skip_broken", "memory_limit_gb"]),
        ("nowhere/images.npz", {}, ["there is no file nowhere/images.npz"]),
        ("nowhere/images", {}, ["nowhere/images is neither", ".npz", ".safetensors"]),
        (Path("images.rar"), {}, ["images.rar is neither"]),
        (Path("images.tar"), {}, ["there is no shard images.tar"]),
        ("{0..9}.tar", {"validation": -1}, ["{0..9}.tar: validation", "-1", "greater than 0"]),
        ([1, 2], {}, ["not by list"]),
        ("mnist", {}, ["MNIST could not be read at", "/nowhere/MNIST/raw", "download=True", "VAEZOO_DATA"]),
        ("svhn", {}, ["/nowhere/train_32x32.mat"]),
        ("cifar10", {}, ["/nowhere/cifar-10-batches-py"]),
        ("celeba", {}, ["/nowhere/celeba"]),
        ("dsprites", {}, ["/nowhere/dsprites/dsprites_ndarray_co1sh3", "/nowhere/dsprites_n", "path="]),
        ("shapes3d", {}, ["/nowhere/3dshapes/3dshapes.h5", "google-deepmind/3d-shapes", "path="]),
        ("mpi3d", {"variant": "real"}, ["/nowhere/mpi3d_real/mpi3d_real.npz", "rr-learning", "path="]),
        ("mpi3d", {"variant": "reel"}, ["variant", "'toy', 'realistic' or 'real'"]),
        ("cars3d", {}, ["/nowhere/cars", "nips2015-analogy-data.tar.gz", "path="]),
        (
            "smallnorb",
            {"path": "/there"},
            ["/there/smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat", "path="],
        ),
    ],
)
def test_mistakes_are_said_in_one_sentence_that_helps(source, options, parts):
    with pytest.raises(VaezooError) as error:
        load_data(source, root="/nowhere", **options)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_loaded_data_comes_back_as_it_is():
    data = load_data("digits")
    assert load_data(data) is data
    with pytest.raises(
        DataError, match="'digits' is loaded already; give validation, binarize where it is loaded"
    ):
        load_data(data, validation=3, binarize="static")


def test_root_is_argument_or_environment_or_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VAEZOO_DATA", "/from/environment")
    assert data_root() == Path("/from/environment")
    assert data_root(tmp_path) == tmp_path
    assert data_root("~") == Path.home()
    monkeypatch.delenv("VAEZOO_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root() == tmp_path / "vaezoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root() == Path.home() / ".cache" / "vaezoo"


def test_a_registered_function_is_a_data_set(monkeypatch):
    monkeypatch.setattr(DATASETS, "_table", dict(DATASETS._table))

    def stripes(seed: int = 0, *, width: int = 2):
        pixels = (torch.arange(8) // width % 2).expand(20, 1, 8, 8)
        return load_data(pixels.contiguous(), seed=seed)

    DATASETS.register("stripes", stripes)
    data = load_data("stripes", width=4, seed=5)
    assert (data.name, data.seed, data.options) == ("stripes", 5, {"width": 4})
    assert torch.equal(data.train.batch(torch.tensor([0]))[0, 0, 0], torch.tensor([0.0] * 4 + [1.0] * 4))


def test_arrays_and_tensors_are_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    a, b = load_data(pixels), load_data(torch.from_numpy(pixels))
    assert a.header()["fingerprint"] == b.header()["fingerprint"]
    assert a.image_shape == (1, 6, 6)
    assert a.train._images.numpy().base is not None
    assert np.shares_memory(a.train._images.numpy(), pixels)  # no copy
