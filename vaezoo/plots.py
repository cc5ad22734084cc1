"""Pictures of what a model does: each function returns a grid [3, H, W] in [0, 1], for `save_grid`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from vaezoo.autoencoder import Autoencoder
from vaezoo.data import Split
from vaezoo.errors import NotFittedError, VaezooError
from vaezoo.random import generator

SMALLEST_TILE = 48  # pixels; smaller images are enlarged by a whole factor to at least this


def grid(images: Tensor, columns: int) -> Tensor:
    """Tile images [N, C, H, W] row by row, [3, H', W']."""
    factor = max(1, math.ceil(SMALLEST_TILE / images.shape[-1]))
    large = images.detach().float().cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(large.clamp(0, 1), nrow=columns, padding=2, pad_value=0.5)


def save_grid(tiles: Tensor, path: str | Path) -> Path:
    """Write a grid as a picture; values are clamped before the cast to bytes."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(tiles, str(path))
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no picture format
        raise VaezooError(f"could not write {path}: {error}") from None
    return path


def reconstructions(model: Autoencoder, x: Tensor, columns: int = 10) -> Tensor:
    """Rows of inputs x [N, C, H, W], each above the row of their reconstructions; a last row that is not full
    is left out."""
    columns = min(columns, len(x))
    x = x[: len(x) // columns * columns]
    rows = zip(x.split(columns), model.reconstruct(x).split(columns))
    return grid(torch.cat([image for pair in rows for image in pair]), columns)


def samples(model: Autoencoder, n: int = 100, seed: int = 0, columns: int = 10) -> Tensor:
    """n samples from the model's own prior."""
    device = next(model.parameters()).device
    return grid(model.sample(n, generator=generator(seed, device)), columns)


def interpolations(model: Autoencoder, x: Tensor, steps: int = 11, spherical: bool = False) -> Tensor:
    """One row from each image of the first half of x [N, C, H, W] to its partner in the second half."""
    half = len(x) // 2
    if not half:
        raise VaezooError(f"an interpolation needs at least 2 images, not {len(x)}")
    return grid(model.interpolate(x[:half], x[half : 2 * half], steps, spherical).flatten(0, 1), steps)


def traversals(model: Autoencoder, x: Tensor, rows: int = 10, steps: int = 11) -> Tensor:
    """One row for each of the latent dimensions that vary most over x [N, C, H, W], moved by three of its
    standard deviations either way from the latent of the first image."""
    z = model.represent(x)
    coarsest = z[0] if isinstance(z, tuple) else z
    deviation = coarsest.transpose(0, 1).flatten(1).std(1, correction=0)
    order = deviation.argsort(descending=True)[:rows]
    images = model.traverse(x[:1], order.tolist(), (3 * deviation[order]).tolist(), steps)
    return grid(images.flatten(0, 2), steps)


def save_pictures(model: Autoencoder, split: Split, folder: str | Path, seed: int = 0) -> dict[str, Path]:
    """Write reconstructions, samples (if the model has a prior), traversals and interpolations as PNGs."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = split.subset(256, seed)
    x = chosen.batch(torch.arange(len(chosen), device=chosen.device)).to(next(model.parameters()).device)
    grids: Mapping[str, Tensor | None] = {
        "reconstructions": reconstructions(model, x[:30]),
        "samples": _samples_or_none(model, seed),
        "traversals": traversals(model, x),
        "interpolations": interpolations(model, x[:16]),
    }
    return {
        name: save_grid(tiles, folder / f"{name}.png") for name, tiles in grids.items() if tiles is not None
    }


def _samples_or_none(model: Autoencoder, seed: int) -> Tensor | None:
    try:
        return samples(model, seed=seed)
    except NotFittedError:
        return None


def overview(models: Mapping[str, Autoencoder], split: Split, path: str | Path, seed: int = 0) -> Path:
    """One column for each model: inputs and reconstructions above, samples below."""
    from matplotlib.figure import Figure

    chosen = split.subset(8, seed)
    x = chosen.batch(torch.arange(len(chosen), device=chosen.device))
    figure = Figure(figsize=(2.6 * len(models), 5.4), layout="constrained")
    axes = figure.subplots(2, len(models), squeeze=False)
    for column, (name, model) in enumerate(models.items()):
        top = reconstructions(model, x.to(next(model.parameters()).device), 4)
        bottom = samples(model, 16, seed, 4)
        for row, tiles in enumerate((top, bottom)):
            axes[row, column].imshow(tiles.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes[row, column].set_axis_off()
        axes[0, column].set_title(f"{name}\ninput over reconstruction", fontsize=9)
        axes[1, column].set_title("samples", fontsize=9)
    figure.savefig(path, dpi=110)
    return Path(path)
