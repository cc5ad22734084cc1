"""Images in memory, in bits and in files: the same images, however they are kept."""

import io
import os
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vaezoo.data import stored
from vaezoo.data.stored import (
    BitImages,
    ByteImages,
    FileImages,
    h5_source,
    load_images,
    npy_source,
    npz_source,
    npz_table,
    pack_bits,
)
from vaezoo.errors import DataError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)
ORDER = torch.tensor([49, 0, 7, 7, 23])
EXPECTED = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())


def saved(path, kind, images=PIXELS):
    """The images in a file of some kind, as a source."""
    if kind == "npy":
        np.save(path / "a.npy", images)
        return npy_source(path / "a.npy")
    if kind in ("npz", "stored npz"):
        save = np.savez_compressed if kind == "npz" else np.savez
        save(path / "a.npz", other=np.arange(3), images=images)
        return npz_source(path / "a.npz", "images")
    with h5py.File(path / "a.h5", "w") as file:
        compressed = {"chunks": (7, 2, 5, 3), "compression": "gzip"} if kind == "h5" else {}
        file.create_dataset("images", data=images, **compressed)
    return h5_source(path / "a.h5", "images")


KINDS = {"npy": True, "npz": False, "stored npz": True, "h5": False, "contiguous h5": True}


@pytest.mark.parametrize(("kind", "uncompressed"), KINDS.items())
@pytest.mark.parametrize("in_memory", [True, False])
def test_every_file_gives_the_images_that_are_in_it(tmp_path, kind, uncompressed, in_memory, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 4 * 60)  # 13 blocks, the last one smaller
    source = saved(tmp_path, kind)
    assert source.shape == PIXELS.shape
    assert (source.offset is not None) == uncompressed
    assert np.array_equal(np.concatenate(list(source.blocks())), PIXELS)
    images = load_images(source, memory_limit_gb=1 if in_memory else 0, unpack=not uncompressed)
    assert images.resident == in_memory
    assert (len(images), images.shape) == (50, (3, 4, 5))
    assert torch.equal(images.gather(torch.arange(50)), EXPECTED)
    assert torch.equal(images.gather(ORDER), EXPECTED[ORDER])
    assert images.gather(ORDER).is_contiguous()


def test_the_limit_is_in_decimal_gigabytes_and_counts_what_fits(tmp_path):
    source = saved(tmp_path, "npy")
    assert source.gigabytes == PIXELS.size / 1e9
    assert load_images(source, memory_limit_gb=PIXELS.size / 1e9, unpack=False).resident
    assert not load_images(source, memory_limit_gb=(PIXELS.size - 1) / 1e9, unpack=False).resident


def test_compressed_images_that_do_not_fit_are_unpacked_only_on_request(tmp_path, monkeypatch):
    source = saved(tmp_path, "npz")
    with pytest.raises(DataError, match=r"take 3e-06 GB, and memory_limit_gb=0; raise .* unpack=True"):
        load_images(source, memory_limit_gb=0, unpack=False)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    load_images(source, memory_limit_gb=0, unpack=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.npz", "a.unpacked.npy"]
    assert np.array_equal(np.load(tmp_path / "a.unpacked.npy"), PIXELS)

    # Once is enough: what is there is used, asked for or not ...
    monkeypatch.setattr(stored.os, "replace", None)
    again = load_images(source, memory_limit_gb=0, unpack=False)
    assert torch.equal(again.gather(ORDER), EXPECTED[ORDER])
    # ... unless it is older than its source, or of other images.
    os.utime(tmp_path / "a.unpacked.npy", (0, 0))
    with pytest.raises(DataError, match="unpack=True"):
        load_images(source, memory_limit_gb=0, unpack=False)
    np.save(tmp_path / "a.unpacked.npy", PIXELS[:7])
    with pytest.raises(DataError, match="unpack=True"):
        load_images(source, memory_limit_gb=0, unpack=False)


def test_a_file_that_cannot_be_unpacked_leaves_nothing_behind(tmp_path):
    source = saved(tmp_path, "npz")
    content = bytearray(source.path.read_bytes())
    content[2000] ^= 0xFF
    source.path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.npz could not be read"):
        load_images(source, memory_limit_gb=0, unpack=True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(("kind", "uncompressed"), KINDS.items())
@pytest.mark.parametrize("limit", [0, 1])
def test_truncated_files_are_named(tmp_path, kind, uncompressed, limit):
    source = saved(tmp_path, kind)
    content = source.path.read_bytes()
    source.path.write_bytes(content[: len(content) - 600])
    with pytest.raises(DataError, match=rf"{source.path.name} could not be read"):
        load_images(source, memory_limit_gb=limit, unpack=True)


def test_a_file_longer_than_its_array_is_refused(tmp_path):
    source = saved(tmp_path, "npy")
    with source.path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="it goes on after the last image"):
        load_images(source, memory_limit_gb=1, unpack=False)


def test_a_file_that_was_cut_off_since_it_was_opened_is_named(tmp_path):
    images = load_images(saved(tmp_path, "npy"), memory_limit_gb=0, unpack=False)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    assert torch.equal(images.gather(torch.tensor([48])), EXPECTED[48:49])
    with pytest.raises(DataError, match="it ends before image 49"):
        images.gather(torch.tensor([48, 49]))


def test_a_changed_byte_is_found_by_the_checksum(tmp_path):
    source = saved(tmp_path, "stored npz")
    content = bytearray(source.path.read_bytes())
    content[source.offset + 1234] ^= 1
    source.path.write_bytes(content)
    with pytest.raises(DataError, match="could not be read: Bad CRC-32"):
        load_images(source, memory_limit_gb=1, unpack=False)


def test_arrays_of_other_types_and_orders_are_refused(tmp_path):
    for images, words in ((PIXELS / 255, "float64"), (np.asfortranarray(PIXELS), "column by column")):
        np.save(tmp_path / "a.npy", images)
        with pytest.raises(DataError, match=words):
            npy_source(tmp_path / "a.npy")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = PIXELS / 255
    with pytest.raises(DataError, match="float64"):
        h5_source(tmp_path / "a.h5", "images")
    for source in (h5_source, npz_source):
        saved(tmp_path, "h5")
        saved(tmp_path, "npz")
        with pytest.raises(DataError, match="no array 'pictures'"):
            source(tmp_path / ("a.h5" if source is h5_source else "a.npz"), "pictures")


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_pickles_are_refused_and_not_run(tmp_path):
    target = tmp_path / "written by a pickle"
    bomb = Bomb(target)
    array = np.empty(3, dtype=object)
    array[:] = bomb
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", images=array)
    with pytest.raises(DataError, match="holds object"):
        npy_source(tmp_path / "a.npy")
    with pytest.raises(DataError, match="holds object"):
        npz_source(tmp_path / "a.npz", "images")
    with pytest.raises(DataError, match="could not be read"):
        npz_table(tmp_path / "a.npz", "images")
    assert not target.exists()
    pickle.loads(pickle.dumps(bomb)).close()
    assert target.exists()  # the bomb is a real one


def test_files_of_python_2_can_be_read(tmp_path):
    """dSprites was saved by Python 2, whose headers may have numbers such as 50L."""
    stream = io.BytesIO()
    np.save(stream, PIXELS)
    content = stream.getvalue().replace(b"(50, 4, 5, 3), }  ", b"(50L, 4L, 5, 3), }")
    assert content != stream.getvalue()
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
    images = load_images(npz_source(tmp_path / "a.npz", "images"), memory_limit_gb=1, unpack=False)
    assert torch.equal(images.gather(ORDER), EXPECTED[ORDER])


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])  # whole bytes, and a last byte with bits to spare
def test_bits_come_back_as_black_and_white(tmp_path, size):
    binary = RANDOM.integers(0, 2, (30, *size), dtype=np.uint8)
    np.save(tmp_path / "a.npy", binary)
    images = pack_bits(npy_source(tmp_path / "a.npy"))
    assert images.binary
    assert images.shape == (1, *size)
    assert images._values.numel() == 30 * -(-size[0] * size[1] // 8)
    assert torch.equal(images.gather(torch.arange(30)), torch.from_numpy(binary[:, None] * 255))
    binary[20, 3, 3] = 2
    np.save(tmp_path / "a.npy", binary)
    with pytest.raises(DataError, match="a pixel of 2, and all should be 0 or 1"):
        pack_bits(npy_source(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ByteImages(torch.zeros(9, 4, 5, 3, dtype=torch.uint8), (3, 4, 5)),
        lambda: BitImages(torch.zeros(9, 3, dtype=torch.uint8), (1, 4, 5)),
    ],
)
def test_resident_images_go_to_a_device_once_and_are_gathered_there(make):
    with FakeTensorMode():
        images = make()
        there = images.to("cuda")
        assert images.to("cuda") is there  # the splits of a data set share one copy
        gathered = there.gather(torch.zeros(2, dtype=torch.long, device="cuda"))
        assert gathered.device.type == "cuda"
        assert gathered.shape == (2, *images.shape)
        del there, gathered
        assert len(images._copies) == 0  # nobody needs it any more


def test_images_in_a_file_can_be_sent_to_workers(tmp_path):
    source = saved(tmp_path, "npy")
    images = FileImages(source.path, source.offset, source.shape)
    content = pickle.dumps(images)
    assert len(content) < 1000  # not the images
    assert torch.equal(pickle.loads(content).gather(ORDER), EXPECTED[ORDER])
