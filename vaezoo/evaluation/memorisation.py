"""Are generated images copies of training images?"""

from __future__ import annotations

import math

import scipy.stats
import torch
from torch import Tensor

from vaezoo.clustering import k_means
from vaezoo.evaluation.features import Features
from vaezoo.evaluation.neighbours import at_least_single, nearest, squared_distances
from vaezoo.evaluation.report import INDEX, Detail, Metric, Result, Results, Skipped
from vaezoo.random import derive, generator

ALPHA = 0.01
CELLS, IMAGES_PER_CELL, LEAST_IN_CELL = 10, 100, 20
SHOWN = 64


def memorised_share(generated: Tensor, held_out: Tensor, alpha: float = ALPHA) -> tuple[float, float]:
    """Share of generated images that are as near to a training image as the nearest `alpha` of held-out real
    images, and its standard error. Expected: `alpha`, of a model that samples the data's distribution.

    The r-th smallest of N held-out distances, r = alpha (N + 1), has a share of r/(N + 1) of the distribution
    below it on average, whatever the distribution; the share is Beta(r, N + 1 - r) distributed. The standard
    error is from that and from the binomial of the generated ones.

    Args:
        generated: distances to the nearest training image, [M].
        held_out: the same of real images that are no training images, [N], N + 1 >= 1/alpha.
    """
    n = len(held_out)
    r = math.floor(alpha * (n + 1) + 1e-9)
    ordered, generated = held_out.sort().values, generated.sort().values
    share = torch.searchsorted(generated, ordered[r - 1 : r], right=True).item() / len(generated)
    # Where else the quantile might have been, in 200 equally probable places.
    at = scipy.stats.beta((r), n + 1 - r).ppf((torch.arange(200).double().numpy() + 0.5) / 200)
    ranks = torch.as_tensor(at * n).long().clamp(0, n - 1).to(ordered.device)
    shares = torch.searchsorted(generated, ordered[ranks], right=True).double() / len(generated)
    return share, math.sqrt(shares.var().item() + share * (1 - share) / len(generated))


def copying_statistic(
    generated: Tensor, held_out: Tensor, cells_generated: Tensor, cells_held_out: Tensor
) -> tuple[float, float, float] | None:
    """C_T of Meehan, Chaudhuri & Dasgupta (2020): are samples nearer to training images than real images are?

    In each cell the Mann-Whitney statistic of distances to training images, generated against held out, as a
    z-score; then their mean, weighted by the share of held-out images in the cell. Each z is N(0, 1) if both
    are drawn from one distribution; below 0 samples are nearer. Cells with fewer than 20 of either are left
    out.

    Args:
        generated, held_out: distances to the nearest training image, [M] and [N].
        cells_generated, cells_held_out: integers from 0, [M] and [N].

    Returns:
        C_T; its standard error, by the variance of the placements (DeLong et al. 1988) with the cells as they
        are; its standard deviation if there is no difference. None if no cell has enough images.
    """
    scores, variances, weights = [], [], []
    for cell in range(int(cells_held_out.max()) + 1):
        g, h = (
            generated[cells_generated == cell].sort().values,
            held_out[cells_held_out == cell].sort().values,
        )
        if min(len(g), len(h)) < LEAST_IN_CELL:
            continue
        above, below = _placements(g, h), _placements(h, g)
        scale = math.sqrt(12 * len(g) * len(h) / (len(g) + len(h) + 1))
        scores.append(scale * (above.mean() - 0.5))
        variances.append(scale**2 * (above.var() / len(g) + below.var() / len(h)))
        weights.append(len(h))
    if not weights:
        return None
    w = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    value = (w * torch.stack(scores).cpu()).sum().item()
    variance = (w.square() * torch.stack(variances).cpu()).sum().item()
    return value, math.sqrt(variance), w.square().sum().sqrt().item()


def _placements(values: Tensor, others: Tensor) -> Tensor:
    """Share of `others`, sorted, that lie below each value, ties counting half."""
    lower, upper = (torch.searchsorted(others, values, right=right) for right in (False, True))
    return (lower + upper).double() / (2 * len(others))


def measure_memorisation(
    features: Features,
    generated: Tensor,
    training: Tensor,
    held_out: Tensor,
    rows: Tensor,
    total: int,
    seed: int = 0,
) -> Results:
    """Distances of generated and of held-out real images to training images.

    Args:
        features: what the rows are.
        generated: [M, d].
        training: of training images, [T, d].
        held_out: of real images that the model was not trained on, [N, d].
        rows: where the training images are in their split, [T].
        total: how many images are in that split.
        seed: draws where k-means starts.
    """
    names = memorisation_names(features)
    finite = torch.stack([x.isfinite().all() for x in (generated, training, held_out)]).tolist()
    for what, sound in zip(("generated", "training", "held-out"), finite):
        if not sound:
            return dict.fromkeys(names, Skipped(f"some features of the {what} images are not finite"))
    generated, training, held_out = map(at_least_single, (generated, training, held_out))

    near_generated, indices = nearest(generated, training)
    near_held_out, _ = nearest(held_out, training)
    among = f"nearest of {len(training)} of {total} training images"
    results: Results = {}
    memorised: Result = Skipped(
        f"the nearest 1% needs at least 99 held-out images, there are {len(held_out)}"
    )
    if (len(held_out) + 1) * ALPHA >= 1:
        share, se = memorised_share(near_generated, near_held_out)
        note = f"{among}; {ALPHA:.2g} is expected of an honest model; se: binomial, and that of the quantile"
        memorised = Metric(share, len(generated), "", se, None, note)
    results[names[0]] = memorised

    cells = max(1, min(CELLS, len(held_out) // IMAGES_PER_CELL, len(training)))
    centres = k_means(training, cells, generator(derive(seed, "cells"), "cpu"))
    cell_of_generated, cell_of_held_out = (
        squared_distances(x, centres).argmin(1) for x in (generated, held_out)
    )
    statistic = copying_statistic(near_generated, near_held_out, cell_of_generated, cell_of_held_out)
    copying: Result = Skipped(f"no cell has {LEAST_IN_CELL} generated and {LEAST_IN_CELL} held-out images")
    if statistic is not None:
        value, se, null = statistic
        note = f"{among}; {cells} cells; 0 ± {null:.2g} if there is no difference, below 0 samples are nearer"
        copying = Metric(value, len(generated), "z", se, None, f"{note}; se by placements")
    results[names[1]] = copying

    shown = rows.to(indices.device)[indices[:SHOWN]].tolist()
    note = f"index in its split of the {among}, for the first samples"
    results[names[2]] = Detail([float(row) for row in shown], ("sample",), unit=INDEX, note=note)
    return results


def memorisation_names(features: Features) -> list[str]:
    return [f"{name}_{features.name}" for name in ("memorised", "c_t", "nearest")]
