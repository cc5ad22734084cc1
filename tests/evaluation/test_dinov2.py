"""DINOv2's network against torchvision's vision transformer, and its weights by the published names.

The real weights were never at hand: that they load follows from names and shapes alone."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from vaezoo.errors import VaezooError
from vaezoo.evaluation import dinov2
from vaezoo.evaluation.dinov2 import DEVIATION, GRID, MEAN, PATCH, SIZES, DINOv2
from vaezoo.evaluation.features import DINOV2, make_features

CPU = torch.device("cpu")


def small(width: int = 128, depth: int = 2, grid: int = 3) -> DINOv2:
    """Random weights, LayerScale and position embeddings too."""
    torch.manual_seed(0)
    network = DINOv2(width, depth, grid).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    return network


def test_it_is_torchvisions_transformer_with_scaled_branches() -> None:
    """torchvision has no LayerScale; multiplied into the last layer of each branch it is the same."""
    network = small()
    theirs = VisionTransformer(3 * PATCH, PATCH, 2, 2, 128, 512).double().eval()
    theirs.heads = nn.Identity()
    ours = network.state_dict()
    renamed = {
        "class_token": ours["cls_token"],
        "conv_proj.weight": ours["patch_embed.proj.weight"],
        "conv_proj.bias": ours["patch_embed.proj.bias"],
        "encoder.pos_embedding": ours["pos_embed"],
        "encoder.ln.weight": ours["norm.weight"],
        "encoder.ln.bias": ours["norm.bias"],
    }
    for i in range(2):
        block, layer = f"blocks.{i}", f"encoder.layers.encoder_layer_{i}"
        attention, mlp = ours[f"{block}.ls1.gamma"], ours[f"{block}.ls2.gamma"]
        renamed |= {
            f"{layer}.self_attention.in_proj_weight": ours[f"{block}.attn.qkv.weight"],
            f"{layer}.self_attention.in_proj_bias": ours[f"{block}.attn.qkv.bias"],
            f"{layer}.self_attention.out_proj.weight": attention[:, None] * ours[f"{block}.attn.proj.weight"],
            f"{layer}.self_attention.out_proj.bias": attention * ours[f"{block}.attn.proj.bias"],
            f"{layer}.mlp.0.weight": ours[f"{block}.mlp.fc1.weight"],
            f"{layer}.mlp.0.bias": ours[f"{block}.mlp.fc1.bias"],
            f"{layer}.mlp.3.weight": mlp[:, None] * ours[f"{block}.mlp.fc2.weight"],
            f"{layer}.mlp.3.bias": mlp * ours[f"{block}.mlp.fc2.bias"],
        }
        for n in (1, 2):
            for kind in ("weight", "bias"):
                renamed[f"{layer}.ln_{n}.{kind}"] = ours[f"{block}.norm{n}.{kind}"]
    theirs.load_state_dict(renamed)
    x = torch.randn(2, 3, 3 * PATCH, 3 * PATCH, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), theirs(x), atol=1e-9, rtol=1e-9)


def test_weights_have_the_published_names_and_shapes() -> None:
    """As in the files of ViT-S/14 (github.com/facebookresearch/dinov2), of images of 518 pixels."""
    assert SIZES.keys() == set(DINOV2)
    width, depth = SIZES["dinov2_vits14"]
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in DINOv2(width, depth).state_dict().items()}
    expected = {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 1370, 384),
        "mask_token": (1, 384),
        "patch_embed.proj.weight": (384, 3, 14, 14),
        "patch_embed.proj.bias": (384,),
        "norm.weight": (384,),
        "norm.bias": (384,),
    }
    for i in range(12):
        for name, shape in {
            "norm1.weight": (384,),
            "norm1.bias": (384,),
            "attn.qkv.weight": (1152, 384),
            "attn.qkv.bias": (1152,),
            "attn.proj.weight": (384, 384),
            "attn.proj.bias": (384,),
            "ls1.gamma": (384,),
            "norm2.weight": (384,),
            "norm2.bias": (384,),
            "mlp.fc1.weight": (1536, 384),
            "mlp.fc1.bias": (1536,),
            "mlp.fc2.weight": (384, 1536),
            "mlp.fc2.bias": (384,),
            "ls2.gamma": (384,),
        }.items():
            expected[f"blocks.{i}.{name}"] = shape
    assert shapes == expected
    assert GRID * PATCH == 518


def cubic(t: float) -> float:
    """The kernel of bicubic interpolation, a = -3/4, as torch has it."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def test_position_embeddings_are_interpolated_with_dinov2s_offset() -> None:
    """By hand along one axis: output i is read at (i + 1/2) grid / (rows + 0.1) - 1/2, borders repeated."""
    grid, rows = 9, 4
    network = small(grid=grid)
    line = torch.randn(grid, dtype=torch.float64)
    with torch.no_grad():
        network.pos_embed[0, 1:, 0] = line.repeat_interleave(grid)  # constant along the columns
    positions = network.positions(rows, rows)
    assert torch.equal(positions[:, 0], network.pos_embed[:, 0])
    assert positions.shape == (1, 1 + rows * rows, 128)
    for i in range(rows):
        at = (i + 0.5) * grid / (rows + 0.1) - 0.5
        near = range(math.floor(at) - 1, math.floor(at) + 3)
        expected = sum(cubic(at - j) * line[min(max(j, 0), grid - 1)].item() for j in near)
        for column in range(rows):
            assert positions[0, 1 + i * rows + column, 0].item() == pytest.approx(expected, abs=1e-9)
    assert torch.equal(network.positions(grid, grid), network.pos_embed)


def save_weights(folder: Path, weights: object) -> None:
    (folder / "checkpoints").mkdir()
    torch.save(weights, folder / "checkpoints" / "dinov2_vits14_pretrain.pth")


def test_features_are_class_tokens_of_resized_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dinov2.SIZES, "dinov2_vits14", (128, 2))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = small(grid=GRID).float()
    save_weights(tmp_path, network.state_dict())
    features = make_features("dinov2_vits14", (1, 224, 224), CPU)
    assert features.name == "dinov2_vits14"
    x = torch.rand(2, 1, 224, 224)
    normalised = torch.cat([(x - mean) / deviation for mean, deviation in zip(MEAN, DEVIATION)], 1)
    with torch.no_grad():
        torch.testing.assert_close(features.extract(x), network(normalised))
    assert features.extract(torch.rand(3, 3, 20, 28)).shape == (3, 128)


class Dangerous:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("was run",)


def test_nothing_in_a_file_of_weights_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    save_weights(tmp_path, {"cls_token": Dangerous()})
    with pytest.raises(VaezooError, match="could not be read"):
        make_features("dinov2_vits14", (1, 28, 28), CPU)
    assert not (tmp_path / "was run").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights: dict[str, Tensor] = {"cls_token": torch.zeros(1, 1, 384)}
    save_weights(tmp_path, weights)
    with pytest.raises(VaezooError, match=r"dinov2_vits14_pretrain\.pth holds weights of another network"):
        make_features("dinov2_vits14", (1, 28, 28), CPU)
