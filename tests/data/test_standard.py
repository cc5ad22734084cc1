import pickle

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from vaezoo.data import load_data
from vaezoo.errors import DataError

RANDOM = np.random.default_rng(0)


def everything(split):
    return split.batch(torch.arange(len(split)))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_and_fashion_mnist_as_published(name, real_data):
    data = real_data(name, validation=10_000)
    assert [len(split) for split in data.splits.values()] == [50_000, 10_000, 10_000]
    # The pixels' mean and deviation over the 60,000 training images, as everyone normalises with them.
    pixels = torch.cat([everything(data.train), everything(data.validation)])
    mean, std = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}[name]
    assert abs(float(pixels.mean()) - mean) < 1e-4
    assert abs(float(pixels.std()) - std) < 1e-4
    assert data.test.labels[:5].tolist() == {"mnist": [7, 2, 1, 0, 4], "fashion_mnist": [9, 2, 1, 1, 6]}[name]
    assert len(data.classes) == 10
    assert data.classes[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[name]
    if name == "fashion_mnist":  # entropy of the binarisation of the test set, nats per image
        p = everything(data.test).double()
        entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum() / len(p)
        assert abs(float(entropy) - 189.86) < 0.01


def test_digits():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    images = torch.cat([everything(split) for split in data.splits.values()])
    assert images.shape == (1797, 1, 8, 8)
    exact = torch.from_numpy(load_digits().data).float() / 16
    torch.testing.assert_close(images.mean(0).flatten(), exact.mean(0), atol=1e-3, rtol=0)
    assert data.classes == tuple("0123456789")
    labels = torch.cat([split.labels for split in data.splits.values()])
    assert labels.bincount().tolist() == np.bincount(load_digits().target).tolist()


def test_cifar10(tmp_path, monkeypatch):
    """Files of CIFAR-10's format with random pixels; torchvision's checksums are switched off."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = RANDOM.integers(0, 256, (6, 4, 3, 32, 32), dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps({"data": pixels[i].reshape(4, -1), "labels": [i, i, 1, 2]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane"]}))
    data = load_data("cifar10", root=tmp_path, validation=3)
    assert torch.equal(everything(data.test), torch.from_numpy(pixels[5]) / 255)
    assert data.test.labels.tolist() == [5, 5, 1, 2]
    assert [len(split) for split in data.splits.values()] == [17, 3, 4]
    assert data.classes[:2] == ("airplane", "automobile")


def test_svhn(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda self: True)
    pixels = RANDOM.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(20) % 10 + 1  # SVHN says 10 for the digit 0
    for name in ("train", "test"):
        scipy.io.savemat(
            tmp_path / f"{name}_32x32.mat", {"X": pixels.transpose(2, 3, 1, 0), "y": labels[:, None]}
        )
    data = load_data("svhn", root=tmp_path)
    assert torch.equal(everything(data.test), torch.from_numpy(pixels) / 255)
    assert data.test.labels.tolist() == (labels % 10).tolist()


def test_celeba(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CelebA._check_integrity", lambda self: True)
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06}.png" for i in range(7)]
    for i, name in enumerate(names):
        pixels = np.full((218, 178, 3), 255, dtype=np.uint8)
        pixels[35:183, 15:163] = 40 * i  # the crop of 148
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
    parts = [0, 0, 0, 1, 2, 2, 1]
    attributes = [[1, -1], [1, 1], [-1, 1], [-1, -1], [1, -1], [1, 1], [1, 1]]

    def table(rows, header=()):
        return (
            "\n".join([*header, *(f"{name} {' '.join(map(str, row))}" for name, row in zip(names, rows))])
            + "\n"
        )

    (folder / "list_eval_partition.txt").write_text(table([[part] for part in parts]))
    (folder / "identity_CelebA.txt").write_text(table([[i] for i in range(7)]))
    (folder / "list_bbox_celeba.txt").write_text(table([[0] * 4] * 7, ["7", "image_id x_1 y_1 width height"]))
    (folder / "list_landmarks_align_celeba.txt").write_text(table([[0] * 2] * 7, ["7", "a b"]))
    (folder / "list_attr_celeba.txt").write_text(table(attributes, ["7", "Bald Smiling"]))
    for limit in (1, 0):
        data = load_data("celeba", root=tmp_path, size=16, memory_limit_gb=limit)
        assert data.train.resident == bool(limit)
        assert [len(split) for split in data.splits.values()] == [3, 2, 2]  # the official splits
        levels = (everything(data.test) * 255).round().flatten(1)
        assert levels.amin(1).tolist() == levels.amax(1).tolist() == [160, 200]
        assert [(factor.name, factor.size) for factor in data.factors] == [("Bald", 2), ("Smiling", 2)]
        assert data.train.factors.tolist() == [[1, 0], [1, 1], [0, 1]]


def test_damaged_files_are_named(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\0\0\0\x09" * 3 + b"\0" * 5)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match=f"MNIST could not be read at {folder} .*download=True"):
        load_data("mnist", root=tmp_path)
