"""The vision transformer of DINOv2 (Oquab et al. 2024), as far as its published weights need it.

The names of the weights are those of the published files, so that these load without running code from
anywhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 14
IMAGE = 224  # images are resized to this side: 16x16 patches
HEAD = 64  # width of an attention head, in every size of the model
GRID = 37  # the published position embeddings are those of 37x37 patches (518 pixels)
NORM_EPSILON = 1e-6
#: Mean and deviation of ImageNet's channels, to which the weights expect images to be normalised.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Width and depth by name.
SIZES = {"dinov2_vits14": (384, 12), "dinov2_vitb14": (768, 12), "dinov2_vitl14": (1024, 24)}


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        q, k, v = self.qkv(x).unflatten(2, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + scale1(attention(norm1(x))), then the same with the MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, NORM_EPSILON) for _ in range(2))
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)
        self.attn, self.mlp = Attention(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H W / 14^2, D]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class DINOv2(nn.Module):
    """ViT/14 with LayerScale.

    Args:
        width: of the tokens, a multiple of 64.
        depth: number of blocks.
        grid: patches along a side that position embeddings are stored for.
    """

    def __init__(self, width: int, depth: int, grid: int = GRID) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of pretraining; it is in the files
        self.patch_embed = PatchEmbedding(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised class token [B, D] of normalised images [B, 3, H, W], H and W multiples of 14."""
        rows, columns = (side // PATCH for side in x.shape[-2:])
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1)
        tokens = tokens + self.positions(rows, columns)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings [1, 1 + rows columns, D], interpolated bicubically if the grid is another."""
        grid = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if (rows, columns) == (grid, grid):
            return self.pos_embed
        own, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        # The 0.1 is DINOv2's own: it moves the positions at which the embeddings are read a little.
        scale = ((rows + 0.1) / grid, (columns + 0.1) / grid)
        image = patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic")
        return torch.cat([own, image.flatten(2).transpose(1, 2)], 1)

    def features(self, x: Tensor) -> Tensor:
        """Class tokens of images of any size, x [B, 1 or 3, H, W] in [0, 1] -> [B, D]."""
        x = F.interpolate(x.float(), (IMAGE, IMAGE), mode="bicubic", antialias=True).clamp(0, 1)
        mean, deviation = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
        return self((x.expand(-1, 3, -1, -1) - mean) / deviation)
