"""Well-known sets of real images, as torchvision and scikit-learn read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vaezoo.data.splits import Factor, ImageData, ResidentSplit, Share, Split, assemble
from vaezoo.data.streaming import Paths, file_split
from vaezoo.errors import DataError

FASHION_CLASSES = (
    *(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")


def mnist(root: Path, seed: int = 0, *, validation: Share = 0.1, download: bool = False) -> ImageData:
    """MNIST: 60,000 + 10,000 handwritten digits, 28x28 grey (LeCun et al. 1998).

    Args:
        root: folder that holds MNIST/raw.
        seed: draws the validation split.
        validation: number of validation images, or their fraction of the training images.
        download: fetch the files if they are missing.

    Raises:
        DataError: files missing or damaged.
    """
    return _pair("MNIST", root / "MNIST" / "raw", DIGITS, root, seed, validation, download)


def fashion_mnist(root: Path, seed: int = 0, *, validation: Share = 0.1, download: bool = False) -> ImageData:
    """Fashion-MNIST: 60,000 + 10,000 pieces of clothing, 28x28 grey (Xiao et al. 2017). See `mnist`."""
    folder = root / "FashionMNIST" / "raw"
    return _pair("FashionMNIST", folder, FASHION_CLASSES, root, seed, validation, download)


def cifar10(root: Path, seed: int = 0, *, validation: Share = 0.1, download: bool = False) -> ImageData:
    """CIFAR-10: 50,000 + 10,000 photographs of 10 classes, 32x32 colour (Krizhevsky 2009). See `mnist`."""
    folder = root / "cifar-10-batches-py"
    return _pair("CIFAR10", folder, CIFAR10_CLASSES, root, seed, validation, download)


def svhn(root: Path, seed: int = 0, *, validation: Share = 0.1, download: bool = False) -> ImageData:
    """SVHN: 73,257 + 26,032 house numbers, 32x32 colour (Netzer et al. 2011). See `mnist`."""
    from torchvision.datasets import SVHN

    def split(name: str) -> ResidentSplit:
        file = root / f"{name}_32x32.mat"
        return _split(_read("SVHN", file, lambda: SVHN(str(root), split=name, download=download), download))

    return assemble(seed, split("train"), validation=validation, test=split("test"), classes=DIGITS)


def celeba(
    root: Path,
    seed: int = 0,
    *,
    size: Annotated[int, Field(ge=8)] = 64,
    crop: Annotated[int, Field(ge=8, le=178)] = 148,
    memory_limit_gb: Annotated[float, Field(ge=0)] = 4.0,
    download: bool = False,
) -> ImageData:
    """CelebA: 202,599 aligned faces with 40 binary attributes, in the official splits (Liu et al. 2015).

    Args:
        root: folder that holds celeba/.
        seed: not used, the splits are given.
        size: height and width after resizing, in pixels.
        crop: side of the centred square that is cut out first, of 178x218 pixels.
        memory_limit_gb: keep the decoded images of a split (10^9 bytes a GB) in memory up to this size, else
            decode them when they are asked for.
        download: fetch the files if they are missing.

    Raises:
        DataError: files missing or damaged.
    """
    from torchvision.datasets import CelebA

    def split(name: str) -> tuple[Split, tuple[Factor, ...]]:
        faces = _read(
            "CelebA", root / "celeba", lambda: CelebA(str(root), split=name, download=download), download
        )
        files = Paths([root / "celeba" / "img_align_celeba" / file for file in faces.filename])
        factors = tuple(Factor(attribute, 2, "categorical") for attribute in faces.attr_names if attribute)
        images = file_split(
            files, size=size, channels=3, crop=crop, factors=faces.attr, memory_limit_gb=memory_limit_gb
        )
        return images, factors

    (train, factors), (validation, _), (test, _) = (split(name) for name in ("train", "valid", "test"))
    return assemble(seed, train, validation=validation, test=test, factors=factors)


def digits(seed: int = 0, *, validation: Share = 0.1, test: Share = 0.1) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey in 17 levels: small, and always there.

    Args:
        seed: draws the splits.
        validation: number of validation images, or their fraction of what the test split leaves.
        test: number of test images, or their fraction of all.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    levels = torch.from_numpy(images).view(-1, 1, 8, 8).mul(255 / 16).round_().byte()
    pool = ResidentSplit(levels, torch.from_numpy(labels).long())
    return assemble(seed, pool, validation=validation, test=test, classes=DIGITS)


def _pair(
    name: str,
    folder: Path,
    classes: tuple[str, ...],
    root: Path,
    seed: int,
    validation: Share,
    download: bool,
) -> ImageData:
    """A set that torchvision makes with `train=True` and `train=False`."""
    import torchvision.datasets

    make = getattr(torchvision.datasets, name)

    def split(train: bool) -> ResidentSplit:
        return _split(_read(name, folder, lambda: make(str(root), train=train, download=download), download))

    return assemble(seed, split(True), validation=validation, test=split(False), classes=classes)


def _split(images: Any) -> ResidentSplit:
    """All images of a torchvision set: [N, H, W], [N, H, W, 3] (CIFAR-10) or [N, 3, H, W] (SVHN)."""
    pixels: Tensor = torch.as_tensor(images.data)
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.shape[1] != 3:
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    labels = images.labels if hasattr(images, "labels") else images.targets
    return ResidentSplit(pixels, torch.as_tensor(np.asarray(labels)).long())


def _read(name: str, folder: Path, make: Callable[[], Any], download: bool) -> Any:
    try:
        return make()
    except Exception as error:  # damaged files make torchvision's readers fail in any way
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        cause = cause.partition(" You can use download")[0].strip(" .:")  # what is possible, we say below
        if download:
            advice = "remove what is there and try again, or fetch the files by hand"
        else:
            advice = (
                "to have it fetched, pass download=True (on the command line: data.download=true), "
                "or point root= or $VAEZOO_DATA to the folder that holds it"
            )
        raise DataError(f"{name} could not be read at {folder} ({cause}); {advice}") from error
