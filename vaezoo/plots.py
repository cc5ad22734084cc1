"""Pictures of what a model does: grids [3, H, W] in [0, 1], for `save_grid`, and a map of its latents.

Charts of what a report says are in `vaezoo.evaluation.charts`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from vaezoo.autoencoder import Autoencoder
from vaezoo.data import ImageData, Split
from vaezoo.distributions import DiagonalGaussian
from vaezoo.errors import VaezooError
from vaezoo.inference import evaluation_mode
from vaezoo.random import derive, generator, seeded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What `save_pictures` draws, each where it applies, and what it shows.
PICTURES = {
    "reconstructions": "inputs, below them their reconstructions, below these the absolute errors",
    "samples": "samples from the model's own prior",
    "nearest": "a sample in the first column, then its nearest training images in pixels",
    "traversals": "a latent dimension for each row, those of the greatest rate first",
    "interpolations": "from one image of the split to another",
    "latent_map": "means of q(z|x), a point for each image",
}

SMALLEST_TILE = 48  # pixels; smaller images are enlarged by a whole factor to at least this
BLOCK = 512  # training images that are compared at a time
MOST_TRAINING_IMAGES = 50_000  # that `save_pictures` looks for neighbours among
MAPPED_IMAGES = 2000  # points of the map of the latents

#: Ten that are told apart with every kind of colour vision (Tol's muted scheme, and grey).
COLOURS = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#777777",
)


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


def reconstructions(model: Autoencoder, x: Tensor, columns: int = 10, errors: bool = True) -> Tensor:
    """Rows of inputs x [N, C, H, W], each above the row of their reconstructions x̂ and that of |x - x̂|, which
    is black where they agree; a last row that is not full is left out."""
    columns = min(columns, len(x))
    x = x[: len(x) // columns * columns]
    output = model.reconstruct(x)
    images = [x, output, (x - output.clamp(0, 1)).abs()] if errors else [x, output]
    rows = zip(*(part.split(columns) for part in images))
    return grid(torch.cat([image for group in rows for image in group]), columns)


def samples(model: Autoencoder, n: int = 100, seed: int = 0, columns: int = 10, **options: Any) -> Tensor:
    """n samples from the model's own prior; `options` are those of `model.sample`."""
    device = next(model.parameters()).device
    return grid(model.sample(n, generator=generator(seed, device), **options), columns)


def interpolations(model: Autoencoder, x: Tensor, steps: int = 11, spherical: bool = False) -> Tensor:
    """One row from each image of the first half of x [N, C, H, W] to its partner in the second half."""
    half = len(x) // 2
    if not half:
        raise VaezooError(f"an interpolation needs at least 2 images, not {len(x)}")
    return grid(model.interpolate(x[:half], x[half : 2 * half], steps, spherical).flatten(0, 1), steps)


@dataclass(frozen=True)
class Ranking:
    """Latent dimensions, those that say most first.

    Attributes:
        order: dimensions, long [D].
        scores: of all dimensions, in their own order, [D].
        by_rate: the scores are mean KL(q(z_d|x) || N(0, 1)) in nats; else variances of E[z_d|x].
    """

    order: Tensor
    scores: Tensor
    by_rate: bool


def rank_dimensions(model: Autoencoder, x: Tensor) -> Ranking:
    """Order the latent dimensions by their mean rate over x [N, C, H, W] where q(z|x) is a diagonal Gaussian.

    Elsewhere, by the variance of E[z_d|x] over images and, for grids, positions. A variance depends on the
    scale that the decoder happens to read; a rate does not."""
    with evaluation_mode(model):
        q = model.encode(x)
        if isinstance(q, DiagonalGaussian):
            scores = q.kl_per_dimension().mean(0, dtype=torch.float64)
        else:
            scores = _by_dimension(q.mean).double().var(1, correction=0)
    return Ranking(scores.argsort(descending=True, stable=True), scores, isinstance(q, DiagonalGaussian))


def _by_dimension(z: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The coarsest level of a latent [N, D, ...] as [D, values]."""
    coarsest = z[0] if isinstance(z, tuple) else z
    return coarsest.transpose(0, 1).flatten(1)


def traversals(model: Autoencoder, x: Tensor, rows: int = 10, steps: int = 11) -> Tensor:
    """One row for each of the first latent dimensions in the order of `rank_dimensions`, moved by three
    standard deviations of E[z_d|x] either way from the latent of the first image."""
    order = rank_dimensions(model, x).order[:rows]
    spans = 3 * _by_dimension(model.represent(x)).std(1, correction=0)[order]
    images = model.traverse(x[:1], order.tolist(), spans.tolist(), steps)
    return grid(images.flatten(0, 2), steps)


# --- Nearest training images ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """The k nearest images of a split to each of N others, nearest first.

    Attributes:
        images: [N, k, C, H, W].
        indices: in the split, long [N, k].
        distances: Euclidean, in the features that were asked for, [N, k].
    """

    images: Tensor
    indices: Tensor
    distances: Tensor


def pixels(x: Tensor) -> Tensor:
    """Images [B, C, H, W] as features [B, C H W]."""
    return x.flatten(1)


@torch.no_grad()
def nearest_images(
    queries: Tensor, split: Split, k: int = 5, extract: Callable[[Tensor], Tensor] = pixels
) -> Neighbours:
    """Find the k nearest images of a split, a block at a time.

    Args:
        queries: [N, C, H, W].
        split: what to search, all of it.
        k: how many; the whole split if it has fewer.
        extract: features [B, d] of images [B, C, H, W]; by default the pixels.
    """
    device = queries.device
    wanted = extract(queries).flatten(1)
    best: Neighbours | None = None
    for indices in torch.arange(len(split), device=split.device).split(BLOCK):
        images = split.batch(indices).to(device)
        features = extract(images).flatten(1)
        # Not by |a|^2 + |b|^2 - 2ab, which loses the small distances that this is about.
        distances = torch.cdist(wanted, features, compute_mode="donot_use_mm_for_euclid_dist")
        found = _smallest(distances, indices.to(device).expand(len(queries), -1), k)
        rows = found[1] - indices[0].to(device)
        block = Neighbours(images[rows], found[1], found[0])
        best = block if best is None else _nearer(best, block, k)
    assert best is not None, "a split is never empty"
    return best


def _smallest(distances: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, places = distances.topk(min(k, distances.shape[1]), largest=False)
    return values, indices.gather(1, places)


def _nearer(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    distances = torch.cat([a.distances, b.distances], 1)
    distances, places = distances.topk(min(k, distances.shape[1]), largest=False)
    rows = torch.arange(len(places), device=places.device).unsqueeze(1)
    return Neighbours(
        torch.cat([a.images, b.images], 1)[rows, places],
        torch.cat([a.indices, b.indices], 1)[rows, places],
        distances,
    )


def nearest(
    model: Autoencoder,
    train: Split,
    n: int = 10,
    seed: int = 0,
    k: int = 7,
    extract: Callable[[Tensor], Tensor] = pixels,
) -> Tensor:
    """One row for each of n samples: the sample, then its k nearest training images in features `extract`.

    A sample that equals its neighbour is a copy; that none of n is one proves nothing."""
    device = next(model.parameters()).device
    drawn = model.sample(n, generator=generator(seed, device))
    found = nearest_images(drawn.clamp(0, 1), train, k, extract).images
    return grid(torch.cat([drawn.unsqueeze(1), found], 1).flatten(0, 1), found.shape[1] + 1)


# --- Map of the latents -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plane:
    """Two coordinates of every latent vector.

    Attributes:
        points: [N, 2].
        titles: what the two axes are.
    """

    points: Tensor
    titles: tuple[str, str]


def latent_plane(model: Autoencoder, batches: Iterable[Tensor]) -> Plane:
    """E[z|x] in its two dimensions of the greatest rate where q(z|x) is a diagonal Gaussian, else in its two
    first principal components.

    Args:
        model: one whose latent is a vector of at least two dimensions.
        batches: images, [B, C, H, W] each, two at least.

    Raises:
        VaezooError: the latent is of another kind, or there is only one image.
    """
    if not _has_plane(model):
        raise VaezooError(f"a map needs latents of one vector of at least 2 dimensions, not {model.latent}")
    means, rates = [], []
    with evaluation_mode(model):
        for x in batches:
            q = model.encode(x)
            means.append(q.mean)
            if isinstance(q, DiagonalGaussian):
                rates.append(q.kl_per_dimension())
    z = torch.cat(means).double()
    if len(z) < 2:
        raise VaezooError("a map needs at least 2 images")
    if rates:
        best = torch.cat(rates).mean(0, dtype=torch.float64).topk(2)
        titles = [f"E[z_{d} | x], rate {rate:.2f} nats" for rate, d in zip(*(part.tolist() for part in best))]
        return Plane(z[:, best.indices].cpu(), (titles[0], titles[1]))
    centred = z - z.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    shares = (values.square() / values.square().sum().clamp_min(1e-30)).tolist()
    titles = [f"principal component {i + 1} of E[z | x], {shares[i]:.0%} of the variance" for i in range(2)]
    return Plane((centred @ directions[:2].T).cpu(), (titles[0], titles[1]))


def _has_plane(model: Autoencoder) -> bool:
    return model.latent.is_vector and model.latent.shapes[0][0] >= 2


def latent_map(
    plane: Plane, values: Tensor | None = None, name: str = "", names: tuple[str, ...] = ()
) -> Figure:
    """A point for each image.

    Args:
        plane: from `latent_plane`.
        values: what to colour by, [N]: up to 10 different values have a colour each, more share a scale.
        name: of what `values` are.
        names: of the values, by number; () where they are numbers.
    """
    import matplotlib
    from matplotlib.figure import Figure

    points = plane.points.numpy()
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    size = max(4.0, 20 - len(points) / 125)
    if values is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color=COLOURS[0], linewidth=0)
    else:
        which = values.cpu().numpy()
        different = sorted(set(which.tolist()))
        if len(different) > len(COLOURS):
            scatter = axes.scatter(
                points[:, 0], points[:, 1], s=size, c=which, cmap=matplotlib.colormaps["viridis"], linewidth=0
            )
            figure.colorbar(scatter, ax=axes, pad=0.02).set_label(name, parse_math=False)
        else:
            for colour, value in zip(COLOURS, different):
                here = points[which == value]
                label = names[int(value)] if names else f"{value:g}"
                axes.scatter(here[:, 0], here[:, 1], s=size, color=colour, linewidth=0, label=label)
            legend = figure.legend(title=name, loc="outside lower center", ncols=5, fontsize=8, markerscale=2)
            for text in (legend.get_title(), *legend.get_texts()):
                text.set_parse_math(False)
    axes.set_xlabel(plane.titles[0])
    axes.set_ylabel(plane.titles[1])
    return figure


def colouring(data: ImageData, split: Split) -> tuple[Tensor | None, str, tuple[str, ...]]:
    """What to colour images of a split by: their labels, else their first categorical factor, else their
    first factor, else nothing. Values [N], what they are, and their names."""
    if split.labels is not None:
        return split.labels, "class", data.classes
    if split.factors is None or not data.factors:
        return None, "", ()
    column = next((i for i, f in enumerate(data.factors) if f.kind == "categorical"), 0)
    return split.factors[:, column], data.factors[column].name, ()


# --- All of them ------------------------------------------------------------------------------------------


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a picture, PNG, SVG or PDF by the suffix."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, format=path.suffix[1:] or "png")
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no picture format
        raise VaezooError(f"could not write {path}: {error}") from None
    return path


def save_pictures(
    model: Autoencoder, data: ImageData, folder: str | Path, split: str = "test", seed: int = 0
) -> dict[str, Path]:
    """Write all that apply as PNGs: reconstructions, samples and nearest (if the model has a prior),
    traversals, interpolations and latent_map (if the latent is a vector). The paths, by these names.

    Args:
        model: any model of the contract.
        data: its data.
        folder: where they go.
        split: whose images are shown; samples are compared with those of train, 50,000 of them at most.
        seed: draws images and samples.
    """
    folder = Path(folder)
    device = next(model.parameters()).device
    with seeded(derive(seed, "pictures"), device):
        chosen = data.splits[split].subset(MAPPED_IMAGES, seed)
        rows = torch.arange(len(chosen), device=chosen.device).split(256)
        x = chosen.batch(rows[0]).to(device)
        grids = {"reconstructions": reconstructions(model, x[:30])}
        if model.prior is not None:
            grids["samples"] = samples(model, seed=seed)
            grids["nearest"] = nearest(model, data.train.subset(MOST_TRAINING_IMAGES, seed), seed=seed)
        grids["traversals"] = traversals(model, x)
        grids["interpolations"] = interpolations(model, x[:16])
        paths = {name: save_grid(tiles, folder / f"{name}.png") for name, tiles in grids.items()}
        if _has_plane(model):
            plane = latent_plane(model, (chosen.batch(part).to(device) for part in rows))
            map_ = latent_map(plane, *colouring(data, chosen))
            paths["latent_map"] = save_figure(map_, folder / "latent_map.png")
    return paths


def captioned(paths: Mapping[str, Path]) -> dict[str, Path]:
    """What `save_pictures` returns, by names that say what is to be seen."""
    return {f"{name}: {PICTURES[name]}": path for name, path in paths.items()}


def overview(models: Mapping[str, Autoencoder], split: Split, path: str | Path, seed: int = 0) -> Path:
    """One column for each model: inputs and reconstructions above, samples below."""
    from matplotlib.figure import Figure

    chosen = split.subset(8, seed)
    x = chosen.batch(torch.arange(len(chosen), device=chosen.device))
    figure = Figure(figsize=(2.6 * len(models), 5.4), layout="constrained")
    axes = figure.subplots(2, len(models), squeeze=False)
    for column, (name, model) in enumerate(models.items()):
        top = reconstructions(model, x.to(next(model.parameters()).device), 4, errors=False)
        bottom = samples(model, 16, seed, 4)
        for row, tiles in enumerate((top, bottom)):
            axes[row, column].imshow(tiles.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes[row, column].set_axis_off()
        axes[0, column].set_title(f"{name}\ninput over reconstruction", fontsize=9)
        axes[1, column].set_title("samples", fontsize=9)
    figure.savefig(path, dpi=110)
    return Path(path)
