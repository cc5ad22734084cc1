"""LPIPS with random weights in the place of AlexNet's, against its definition written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor
from torchvision.models import AlexNet_Weights, alexnet

from vaezoo.evaluation.lpips import SMALLEST, make_lpips
from vaezoo.evaluation.report import Skipped

CPU = torch.device("cpu")
FILE = AlexNet_Weights.DEFAULT.url.rpartition("/")[2]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Random ones, in an empty hub cache; those of the classifier, which LPIPS does not use, take no room."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in alexnet().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {
        key: (
            0.05 * torch.randn(shape, generator=generator)
            if key.startswith("features")
            else torch.zeros(1).expand(shape)
        )
        for key, shape in shapes.items()
    }
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / FILE)
    return state


def defined(a: Tensor, b: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Zhang et al. 2018, eq. 1: squared differences of unit vectors after each ReLU of AlexNet, weighted."""
    bundled = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
    linear = torch.load(bundled, map_location="cpu", weights_only=True)
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).view(2, 1, 3, 1, 1)
    maps = [(2 * x - 1 - shift) / scale for x in (a, b)]
    total = torch.zeros(len(a))
    for layer, (index, stride, padding) in enumerate(
        [(0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)]
    ):
        if index in (3, 6):
            maps = [F.max_pool2d(x, 3, 2) for x in maps]
        kernel, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
        maps = [F.conv2d(x, kernel, bias, stride, padding).relu() for x in maps]
        unit = [x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt() for x in maps]
        weighted = (unit[0] - unit[1]).square() * linear[f"lin{layer}.model.1.weight"]
        total += weighted.sum(1).mean((1, 2))
    return total


def test_it_is_the_definition_and_0_for_equal_images(weights: dict[str, Tensor]) -> None:
    torch.manual_seed(3)
    expected_draw = torch.rand(2)
    torch.manual_seed(3)
    lpips = make_lpips((3, 48, 40), CPU)
    assert torch.equal(torch.rand(2), expected_draw), "the global random state is left alone"
    assert not isinstance(lpips, Skipped)
    a, b = torch.rand(2, 4, 3, 48, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(lpips(a, b), defined(a, b, weights), rtol=1e-4, atol=1e-6)
        assert lpips(a, a).tolist() == [0, 0, 0, 0]
        grey = lpips(a[:, :1], b[:, :1])
        torch.testing.assert_close(grey, lpips(*(x[:, :1].repeat(1, 3, 1, 1) for x in (a, b))))
        assert lpips(a[:1, :, :SMALLEST, :SMALLEST], b[:1, :, :SMALLEST, :SMALLEST]).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, SMALLEST - 1, 64), (4, 64, 64)])
def test_images_that_alexnet_cannot_see_are_skipped(shape: tuple[int, int, int]) -> None:
    skipped = make_lpips(shape, CPU)
    assert isinstance(skipped, Skipped)
    assert "1 or 3 channels and at least 31x31" in skipped.reason


def test_missing_weights_are_asked_for_and_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    skipped = make_lpips((3, 64, 64), CPU)
    assert isinstance(skipped, Skipped)
    assert FILE in skipped.reason
    assert "fetch them once with python -c" in skipped.reason
    assert not any(tmp_path.iterdir())
