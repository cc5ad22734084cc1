import numpy as np
import pytest
import torch
from PIL import Image

from vaezoo.data import Loader, load_data
from vaezoo.errors import DataError

RANDOM = np.random.default_rng(0)


def write(path, height=6, width=6, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path, **options)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Twenty-one images in three classes."""
    for i in range(21):
        write(tmp_path / "images" / f"class{i % 3}" / f"{i:02}.png")
    return tmp_path / "images"


def break_file(path):
    """Cut off the second half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("limit", [1, 0])
def test_subfolders_are_classes(folder, limit):
    data = load_data(folder, memory_limit_gb=limit, seed=2)
    assert data.classes == ("class0", "class1", "class2")
    assert data.train.resident == (limit == 1)
    assert [len(split) for split in data.splits.values()] == [17, 2, 2]
    seen = {}
    for split in data.splits.values():
        for i, label in enumerate(split.labels):
            image = (split.batch(torch.tensor([i]))[0] * 255).round().byte().permute(1, 2, 0).numpy()
            seen[image.tobytes()] = int(label)
    files = {
        np.array(Image.open(file)).tobytes(): int(file.parent.name[-1]) for file in folder.rglob("*.png")
    }
    assert seen == files
    header = data.header()
    assert load_data(header["name"], seed=2, **header["options"]).header() == header
    options = {"path": str(folder), "memory_limit_gb": limit}
    assert load_data("image_folder", seed=2, **options).header()["fingerprint"] == header["fingerprint"]


def test_train_and_test_are_splits_not_classes(tmp_path):
    for part, count in (("train", 8), ("val", 3), ("test", 4)):
        for i in range(count):
            write(tmp_path / part / "ab"[i % 2] / f"{i}.png")
    data = load_data(tmp_path)
    assert data.classes == ("a", "b")
    assert [len(split) for split in data.splits.values()] == [8, 3, 4]
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_images_without_subfolders_have_no_labels(tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.png")
    (tmp_path / ".hidden").write_text("not an image")
    data = load_data(tmp_path)
    assert data.classes == ()
    assert data.train.labels is None


@pytest.mark.parametrize("limit", [1, 0])
def test_size_resizes_the_shorter_side_and_cuts_out_the_middle(tmp_path, limit):
    for i in range(5):
        pixels = np.zeros((8, 24, 3), dtype=np.uint8)
        pixels[:, 8:16] = 200  # the middle
        pixels[:, :8, 0] = pixels[:, 16:, 1] = 255  # what is cut off
        Image.fromarray(pixels if i else pixels.transpose(1, 0, 2).copy()).save(tmp_path / f"{i}.png")
    data = load_data(tmp_path, size=4, memory_limit_gb=limit)
    assert data.image_shape == (3, 4, 4)
    for split in data.splits.values():
        batch = split.batch(torch.arange(len(split)))
        assert torch.equal(batch[:, :, 1:3, 1:3], torch.full_like(batch[:, :, 1:3, 1:3], 200 / 255))
        assert (batch - 200 / 255).abs().max() < 0.5


@pytest.mark.parametrize("limit", [1, 0])
def test_images_of_different_sizes_are_refused_by_name(folder, limit):
    write(folder / "class1" / "odd.png", height=7)
    with pytest.raises(DataError, match=r"class1/odd.png is \[3, 7, 6\] .* \[3, 6, 6\]; give size="):
        load_data(folder, memory_limit_gb=limit)


def test_grey(tmp_path):
    pixels = np.stack([write(tmp_path / f"{i}.png", mode="L") for i in range(5)])
    data = load_data(tmp_path, channels=1)
    assert data.image_shape == (1, 6, 6)
    found = {
        (split.batch(torch.tensor([i]))[0] * 255).round().byte().numpy().tobytes()
        for split in data.splits.values()
        for i in range(len(split))
    }
    assert found == {image.tobytes() for image in pixels}
    grey = load_data(tmp_path, channels=3).train.batch(torch.tensor([0]))
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_photographs_on_their_side_are_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for i in range(4):
        write(tmp_path / f"{i}.jpg", height=6, width=9, exif=exif)
    assert load_data(tmp_path).image_shape == (3, 9, 6)
    assert len(list(Loader(load_data(tmp_path, memory_limit_gb=0).train, 1).epoch(0))) == 2


@pytest.mark.parametrize("limit", [1, 0])
def test_broken_files_are_named_and_counted(folder, limit):
    break_file(folder / "class1" / "04.png")
    (folder / "class2" / "notes.txt").write_text("not an image")
    with pytest.raises(DataError) as error:
        load_data(folder, memory_limit_gb=limit)
    for part in ("2 of 22 files", "class1/04.png", "class2/notes.txt", "skip_broken=True"):
        assert part in str(error.value)
    with pytest.warns(
        UserWarning, match="2 of 22 files .*class1/04.png.*class2/notes.txt.*left out"
    ) as warned:
        data = load_data(folder, memory_limit_gb=limit, skip_broken=True)
    assert len(warned) == 1
    assert sum(len(split) for split in data.splits.values()) == 20
    labels = torch.cat([split.labels for split in data.splits.values()])
    assert labels.bincount().tolist() == [7, 6, 7]


def test_a_long_list_of_broken_files_is_cut(folder):
    for file in (folder / "class0").iterdir():
        break_file(file)
    with pytest.raises(DataError, match=r"7 of 21 files.*; \.\.\.\. Remove") as error:
        load_data(folder)
    assert str(error.value).count(".png") == 5


def test_a_truncated_file_that_its_header_hides_is_named_when_it_is_read(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.jpg", height=64, width=64)
        break_file(tmp_path / f"{i}.jpg")
    with pytest.raises(DataError, match=r"4 of 4 files.*0.jpg"):
        load_data(tmp_path, size=32)
    split = load_data(tmp_path, size=32, memory_limit_gb=0).train
    with pytest.raises(DataError, match=r"\d.jpg: .*truncated"):
        split.batch(torch.tensor([0]))


def test_more_than_eight_bits_are_refused_rather_than_cut_off(tmp_path):
    for i in range(4):
        Image.fromarray(RANDOM.integers(0, 65536, (6, 6), dtype=np.uint16)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        load_data(tmp_path, size=6, channels=1)


def test_no_folder_no_files_no_images(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        load_data("image_folder", path=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=f"there are no files in {tmp_path}"):
        load_data(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"none of the 1 files is an image .*a.txt"):
        load_data(tmp_path)


def test_memory_limit_decides(folder):
    total = 21 * 3 * 6 * 6 / 1e9
    assert load_data(folder, memory_limit_gb=total * 1.001).train.resident
    assert not load_data(folder, memory_limit_gb=total * 0.999).train.resident


def test_binarisation(folder):
    batch = load_data(folder, binarize="static").train.batch(torch.arange(5))
    assert batch.unique().tolist() == [0, 1]
