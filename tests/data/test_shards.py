"""Shards: the same images as in a folder, read at any offset, and tar files that are wrong in every way."""

import gzip
import io
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from vaezoo.data import Loader, load_data, shards
from vaezoo.data.shards import find_shards, index_shards
from vaezoo.errors import DataError

RANDOM = np.random.default_rng(0)


def png(height=5, width=6):
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def header(name, size=0, **fields):
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def write(path, *members, format=tarfile.PAX_FORMAT):
    """A tar file of (name, content) or headers without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                tar.addfile(header(member[0], len(member[1])), io.BytesIO(member[1]))
    return path


def pixels(split):
    """The images of a split as bytes, in its order."""
    return [image.numpy().tobytes() for image in split.batch(torch.arange(len(split)))]


@pytest.fixture
def both(tmp_path):
    """Thirty images with labels, in a folder and in three shards."""
    images = [png() for _ in range(30)]
    for i, image in enumerate(images):
        (tmp_path / "folder" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(i % 3) / f"{i:02}.png").write_bytes(image)
    order = sorted(range(30), key=lambda i: (i % 3, i))  # that of the folder
    for number in range(3):
        members = [
            member
            for i in order[10 * number : 10 * number + 10]
            for member in (
                (f"some.where/{i:02}.cls", f"{i % 3}\n".encode()),
                (f"some.where/{i:02}.PNG", images[i]),
                (f"some.where/{i:02}.json", b"{}"),
                (f"some.where/{i:02}.mask.png", images[i]),
            )
        ]
        write(tmp_path / "shards" / f"{number:02}.tar", header("some.where", type=tarfile.DIRTYPE), *members)
    return tmp_path


@pytest.mark.parametrize("limit", [1, 0])
def test_the_same_images_as_in_a_folder(both, limit):
    """In the same order, so in the same splits and batches: resident or not, by pattern or by folder."""
    expected = load_data(both / "folder", seed=3)
    for source in (both / "shards" / "{00..02}.tar", str(both / "shards" / "{00..02}.tar")):
        data = load_data(source, seed=3, memory_limit_gb=limit)
        assert data.train.resident == bool(limit)
        assert data.classes == ("0", "1", "2")
        for name, split in data.splits.items():
            assert pixels(split) == pixels(expected.splits[name])
            assert torch.equal(split.labels, expected.splits[name].labels)
        assert data.header()["fingerprint"] == expected.header()["fingerprint"]
    header = load_data("webdataset", path=str(both / "shards"), seed=3, memory_limit_gb=limit).header()
    assert load_data(header["name"], seed=3, **header["options"]).header() == header
    assert header["fingerprint"] == expected.header()["fingerprint"]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_exactly_once_per_epoch(both, workers, monkeypatch):
    """Also from the middle of an epoch, and with fewer files open than there are shards."""
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    train = load_data(both / "shards" / "{00..02}.tar", memory_limit_gb=0).train
    everything = sorted(pixels(train))
    assert len(set(everything)) == len(everything) == 24
    loader = Loader(train, 5, seed=1, drop_last=False, workers=workers)
    epochs = []
    for epoch in range(2):
        epochs.append([image.numpy().tobytes() for batch in loader.epoch(epoch) for image in batch])
        assert sorted(epochs[-1]) == everything
        again = [image.numpy().tobytes() for batch in loader.epoch(epoch, start=2) for image in batch]
        assert again == epochs[-1][10:]
    assert train._files._shards.get.cache_info().currsize == 2
    assert epochs[0] != epochs[1]
    assert epochs[0] != pixels(train)


@pytest.mark.parametrize("given", ["subfolders", "options"])
def test_splits_that_are_given(tmp_path, given):
    images = {"train": [png() for _ in range(6)], "val": [png()], "test": [png(), png()]}
    for name, files in images.items():
        write(tmp_path / name / "0.tar", *((f"{i}.png", file) for i, file in enumerate(files)))
    options = (
        {"path": tmp_path}
        if given == "subfolders"
        else {
            "path": tmp_path / "train",
            "validation": tmp_path / "val",
            "test": str(tmp_path / "test" / "0.tar"),
        }
    )
    data = load_data("webdataset", **options)
    assert [len(split) for split in data.splits.values()] == [6, 1, 2]
    decoded = np.asarray(Image.open(io.BytesIO(images["val"][0]))).transpose(2, 0, 1)
    assert torch.equal(data.validation.batch(torch.tensor([0]))[0], torch.from_numpy(decoded.copy()) / 255)
    options = {"validation": 1, "test": tmp_path / "train" / "0.tar"}
    with pytest.raises(DataError, match=r"train/0.tar is in train and in test; splits must be disjoint"):
        load_data("webdataset", path=tmp_path / "train", **options)
    write(tmp_path / "test" / "0.tar", ("0.png", images["test"][0]), ("0.cls", b"1"))
    options = {"validation": 1, "test": tmp_path / "test" / "0.tar"}
    with pytest.raises(DataError, match=r"train have no labels \(.cls\), but those of other splits have"):
        load_data("webdataset", path=tmp_path / "train", **options)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar(tmp_path, format):
    """Names that are long have headers of their own."""
    files = [png() for _ in range(4)]
    members = [(f"{'folder/' * 16}{i}.png", file) for i, file in enumerate(files)]
    write(tmp_path / "a.tar", *members, format=format)
    members, labels = index_shards([tmp_path / "a.tar"])
    assert [members.open(i).read() for i in range(4)] == files
    assert labels is None
    assert members.name(2).startswith("'folder/folder/")
    assert members.name(2).endswith(f" of {tmp_path}/a.tar")


def test_the_index_is_small(both):
    members, _ = index_shards(sorted((both / "shards").iterdir()))
    assert members._places.nbytes == 24 * len(members)
    assert len(pickle.dumps(members)) < 24 * len(members) + 800
    names = {members.name(i).split("'")[1] for i in range(30)}
    assert names == {f"some.where/{i:02}.PNG" for i in range(30)}


def test_files_are_shared_by_threads_and_opened_anew_by_other_processes(both):
    members, _ = index_shards(sorted((both / "shards").iterdir()))
    alone = [members.open(i).read() for i in range(30)]
    assert members._shards.get.cache_info().currsize == 3
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: members.open(i % 30).read(), range(600))) == 20 * alone
    spawned = pickle.loads(pickle.dumps(members))
    assert spawned._shards.get.cache_info().currsize == 0
    assert [spawned.open(i).read() for i in range(30)] == alone


def test_files_are_closed(both):
    before = (
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("needs /proc")
    )
    split = load_data(both / "shards" / "{00..02}.tar", memory_limit_gb=0).train
    split.batch(torch.arange(len(split)))
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del split
    assert len(os.listdir("/proc/self/fd")) == before


def test_patterns(tmp_path):
    for name in ("a-08-1", "a-08-2", "a-09-1", "a-09-2", "a-10-1", "a-10-2", "b"):
        (tmp_path / f"{name}.tar").touch()

    def found(pattern):
        return [path.name for path in find_shards(tmp_path / pattern)]

    assert found("a-{08..10}-{1..2}.tar") == [f"a-{i}-{j}.tar" for i in ("08", "09", "10") for j in (1, 2)]
    assert found("b.tar") == ["b.tar"]
    assert found("") == sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError, match=r"the range \{3..1\} of .* is empty"):
        found("a-{3..1}.tar")
    with pytest.raises(DataError, match=r"there is no shard .*a-11-1.tar"):
        found("a-{08..999999999999}-{1..1}.tar")
    for address in ("pipe:touch gone.tar", "https://some.where/a.tar", "s3://some/a.tar"):
        with pytest.raises(DataError, match="shards must be files that can be read at any offset"):
            load_data("webdataset", path=address)
    with pytest.raises(DataError, match=r"there is no shard .*nowhere"):
        load_data("webdataset", path=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"there are no shards \(.tar\) in .*empty"):
        load_data("webdataset", path=tmp_path / "empty")


IMAGE = ("a.png", png())

#: Tar files that are refused, and what is said of them.
REFUSED = {
    "two images": ([IMAGE, ("a.jpg", b"")], r"x.tar: the sample 'a' has two images, the second is 'a.jpg'"),
    "no image": ([IMAGE, ("d/b.cls", b"1")], r"x.tar: the sample 'd/b' has no image \(jpg, "),
    "two labels": ([IMAGE, ("a.cls", b"1"), ("a.cls", b"1")], "x.tar: the sample 'a' has two labels"),
    "some labels": ([IMAGE, ("b.png", IMAGE[1]), ("b.cls", b"1")], "'a.png' of .*x.tar has no label"),
    "not a label": ([IMAGE, ("a.cls", b"cat")], "x.tar: 'a.cls' holds no label, which is a number from 0"),
    "negative label": ([IMAGE, ("a.cls", b"-1")], "x.tar: 'a.cls' holds no label"),
    "huge label": ([IMAGE, ("a.cls", b"9" * 5000)], "x.tar: 'a.cls' holds no label"),
    "nothing": ([], r"x.tar holds no images \(jpg, "),
    "no samples": ([("README", b""), (".hidden.png", b"")], "x.tar holds no images"),
    "symlink": ([IMAGE, header("b.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "'b.png' is a link"),
    "hard link": ([IMAGE, header("b.png", type=tarfile.LNKTYPE, linkname="a.png")], "'b.png' is a link"),
    "device": ([IMAGE, header("b.png", type=tarfile.CHRTYPE)], "x.tar: 'b.png' is a link, a device or"),
    "pipe": ([IMAGE, header("b.png", type=tarfile.FIFOTYPE)], "x.tar: 'b.png' is a link, a device or"),
    "huge": ([IMAGE, header("b.png", 2**60)], f"'b.png' has {2**60} bytes from byte .* cut off"),
    "negative": ([header("a.png", -512)], "x.tar: 'a.png' has -512 bytes from byte .* cut off or damaged"),
    "negative of no file": ([IMAGE, header("b", -1024, type=b"Z")], "x.tar: 'b' has -1024 bytes"),
    "damaged image": ([("a.png", b"no"), ("b.png", IMAGE[1])], "1 of 2 files .*'a.png' of .*x.tar: no image"),
    "many empty": ([header(f"{i}.png") for i in range(2000)], "none of the 2000 files is .*'0.png' of"),
    "other size": ([IMAGE, ("b.png", png(7))], r"'b.png' of .*x.tar is \[3, 7, 6\] .*give size="),
    "escape": ([IMAGE, ("\x1b[2J.cls", b"1")], r"the sample '\\x1b\[2J' has no image"),
}  # fmt: skip


@pytest.mark.parametrize("limit", [1, 0])
@pytest.mark.parametrize("case", REFUSED)
def test_shards_that_are_refused(tmp_path, case, limit):
    members, message = REFUSED[case]
    write(tmp_path / "x.tar", *members, format=tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match=message) as error:
        load_data(tmp_path / "x.tar", memory_limit_gb=limit)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_names_that_point_elsewhere_are_only_names(tmp_path):
    files = [png() for _ in range(4)]
    write(tmp_path / "a" / "x.tar", *((f"../../{i}.png", file) for i, file in enumerate(files)))
    assert len(load_data(tmp_path / "a" / "x.tar").train) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "x.tar"]


def test_files_that_are_cut_off_anywhere(tmp_path):
    """At any block, or within one; what is left is never taken for a smaller shard."""
    whole = write(tmp_path / "x.tar", *((f"{i}.png", png()) for i in range(5))).read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512  # from here on there is the end mark
    load_data(tmp_path / "x.tar")
    for length in (*range(0, end + 512, 512), 100, 700, end - 100):
        (tmp_path / "x.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"x.tar") as error:
            load_data(tmp_path / "x.tar")
        assert "\n" not in str(error.value)


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path):
    path = write(tmp_path / "x.tar", *((f"{i}.png", png()) for i in range(5)))
    content = bytearray(path.read_bytes())
    at = content.index(b"3.png")
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"x.tar is cut off or damaged at byte {at}"):
        load_data(path)


def test_mutations_are_refused_or_harmless(tmp_path):
    """Flipped bytes in headers: an error in one sentence, or images; no hang, and nothing else."""
    path = write(tmp_path / "x.tar", *((f"{i}.png", png()) for i in range(3)), ("2.cls", b"1"))
    whole = path.read_bytes()
    starts = [whole.index(name) for name in (b"0.png", b"1.png", b"2.png", b"2.cls")]
    random, said = np.random.default_rng(0), []
    for _ in range(300):
        content = bytearray(whole)
        start = random.choice(starts)
        content[start + random.choice([*range(124, 136), 156, 345])] = random.integers(256)
        block = content[start : start + 512]
        block[148:156] = b" " * 8
        content[start + 148 : start + 156] = b"%06o\0 " % sum(block)  # its checksum is right
        path.write_bytes(content)
        try:
            index_shards([path])
        except DataError as error:
            said.append(str(error))
    assert len(said) > 100
    assert all("x.tar" in sentence and "\n" not in sentence for sentence in said)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.tar.gz", gzip.compress(b"", mtime=0), "gzip"),
        ("x.tgz", gzip.compress(b"", mtime=0), "gzip"),
        ("x.tar", gzip.compress(b"", mtime=0), "gzip"),
        ("x.tar.zst", b"\x28\xb5\x2f\xfd", "zstandard"),
    ],
)
def test_compressed_shards_are_refused(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    write(tmp_path / "y.tar", IMAGE)
    with pytest.raises(DataError, match=rf"{name} is compressed \({kind}\), .* decompress it"):
        load_data("webdataset", path=tmp_path)


def test_skip_broken_leaves_out_what_is_damaged(tmp_path):
    files = [png() for _ in range(6)]
    files[2] = files[2][: len(files[2]) // 2]
    write(tmp_path / "x.tar", *((f"{i}.png", file) for i, file in enumerate(files)))
    for limit in (1, 0):
        with pytest.warns(UserWarning, match=r"1 of 6 files .*'2.png' of .*x.tar.* left out"):
            data = load_data(tmp_path / "x.tar", skip_broken=True, memory_limit_gb=limit)
        assert sum(len(split) for split in data.splits.values()) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_changes_under_way_is_named(both, workers):
    train = load_data(both / "shards" / "{00..02}.tar", memory_limit_gb=0).train
    os.truncate(both / "shards" / "01.tar", 1024)
    with pytest.raises(DataError, match=r"01.tar: ") as error:
        list(Loader(train, 5, workers=workers).epoch(0))
    assert "\n" not in str(error.value)
    train = load_data(both / "shards" / "00.tar", memory_limit_gb=0).train.to("cpu")
    (both / "shards" / "00.tar").unlink()
    fresh = pickle.loads(pickle.dumps(train))
    with pytest.raises(DataError, match=r"the image at byte \d+ of .*00.tar: .*No such file"):
        fresh.batch(torch.tensor([0]))
