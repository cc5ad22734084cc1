"""What all tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vaezoo.data import ImageData, data_root, load_data

# On a busy machine, threads on small tensors wait a hundred times as long as they compute.
torch.set_num_threads(1)

DATA_ROOT = data_root()

FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` run wherever there is a GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> Callable[..., ImageData]:
    """`load_data` of MNIST or Fashion-MNIST; a test that asks for one that is not there is skipped."""

    def load(name: str, **options: object) -> ImageData:
        if not (DATA_ROOT / FOLDERS[name]).is_dir():
            pytest.skip(f"{FOLDERS[name]} is not in {DATA_ROOT}; set VAEZOO_DATA to the folder it is in")
        return load_data(name, root=DATA_ROOT, **options)

    return load
