"""Do generated images look like real ones, and like all of them?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vaezoo.evaluation.features import Features
from vaezoo.evaluation.report import Better, Metric, Result, Results, Skipped, average

BLOCK = 4096  # rows that are held in float64 at a time
DISTANCES = 2**24  # distances that are held at a time
K_PRECISION, K_DENSITY = 3, 5


@torch.no_grad()
def extract(features: Features, images: Iterable[Tensor]) -> Tensor:
    """Features of batches of images [B, C, H, W], clamped to [0, 1] as a saved image would be: [N, d]."""
    return torch.cat([features.extract(x.clamp(0, 1)).flatten(1) for x in images])


# --- Frechet distance ------------------------------------------------------------------------------------


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and unbiased covariance [d, d] of features [N, d], in float64, a block of rows at a time."""
    mean = features.mean(0, dtype=torch.float64)
    covariance = mean.new_zeros(len(mean), len(mean))
    for block in features.split(BLOCK):
        centred = block - mean
        covariance.addmm_(centred.T, centred)
    return mean, covariance / (len(features) - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """Squared Frechet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017). Scalar.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2). The last trace is that of the square root of the symmetric
    C1^1/2 C2 C1^1/2, so eigenvalues of symmetric matrices do, singular ones included.

    Args:
        mean1, mean2: [d], float64.
        cov1, cov2: [d, d], float64.
    """
    root = _square_root(cov1)
    cross = _eigenvalues_of(root @ cov2 @ root).sqrt().sum()
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross


def frechet_variance(features1: Tensor, features2: Tensor, paired: bool = False) -> Tensor:
    """Sampling variance of the Frechet distance of two sets of features [N, d] and [M, d]. Scalar.

    By the delta method: the variance of each row's influence on the distance, over the number of rows. Where
    the two distributions are the same the influence vanishes, and this is somewhat too large.

    Args:
        features1, features2: drawn independently, unless they are
        paired: N = M, and row i of one belongs to row i of the other, as a reconstruction does to its image.
    """
    (mean1, cov1), (mean2, cov2) = moments(features1), moments(features2)
    influence1 = _influence(features1, mean1, cov1, mean2, cov2)
    influence2 = _influence(features2, mean2, cov2, mean1, cov1)
    if paired:
        return (influence1 + influence2).var() / len(features1)
    return influence1.var() / len(features1) + influence2.var() / len(features2)


def _influence(x: Tensor, mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> Tensor:
    """Derivative of the distance with respect to the weight of each row of x [N, d], up to a constant: [N].

    With c = x - mean and T the optimal transport map between the two Gaussians, d tr(C1 C2)^1/2 / dC1 is
    T / 2, so the influence is 2 c.(mean - other mean) + c.c - c'Tc.
    """
    values, vectors = torch.linalg.eigh(cov)
    values = values.clamp_min(0)
    used = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverse_root = (vectors * torch.where(used, values.rsqrt(), 0)) @ vectors.T
    root = (vectors * values.sqrt()) @ vectors.T
    transport = inverse_root @ _square_root(root @ other_cov @ root) @ inverse_root
    blocks = []
    for block in x.split(BLOCK):
        centred = block - mean
        quadratic = (centred * (centred - centred @ transport)).sum(1)
        blocks.append(quadratic + 2 * centred @ (mean - other_mean))
    return torch.cat(blocks)


def _square_root(matrix: Tensor) -> Tensor:
    """Of a symmetric positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _eigenvalues_of(matrix: Tensor) -> Tensor:
    """Of a symmetric positive semidefinite matrix; those that rounding leaves below 0 become 0."""
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).clamp_min(0)


# --- Neighbourhoods --------------------------------------------------------------------------------------


def neighbour_radius(features: Tensor, k: int) -> Tensor:
    """Distance of each row of features [N, d] to its k-th nearest other row: [N]."""
    radii = []
    for block in features.split(max(1, DISTANCES // len(features))):
        distances = torch.cdist(block, features)
        # The nearest row is the row itself, so the k-th other one is the (k + 1)-th.
        radii.append(distances.topk(k + 1, dim=1, largest=False).values[:, k])
    return torch.cat(radii)


def balls_around(points: Tensor, centres: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Points in balls: how many balls each point lies in, [N], and which balls hold a point, bool [M].

    Args:
        points: [N, d].
        centres: of the balls, [M, d].
        radii: of the balls, [M].
    """
    inside = []
    covered = torch.zeros_like(radii, dtype=torch.bool)
    for block in points.split(max(1, DISTANCES // len(centres))):
        hits = torch.cdist(block, centres) <= radii
        inside.append(hits.sum(1))
        covered |= hits.any(0)
    return torch.cat(inside), covered


def precision_recall(real: Tensor, fake: Tensor, k: int = K_PRECISION) -> tuple[Tensor, Tensor]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2), before the mean: which fakes lie
    in the real manifold, [M], and which reals in that of the fakes, [N], as 0 or 1.

    Args:
        real: features [N, d].
        fake: features [M, d].
        k: neighbours; a manifold is the union of the balls that reach to each row's k-th neighbour.
    """
    real, fake = _centre(real, fake)
    in_real, _ = balls_around(fake, real, neighbour_radius(real, k))
    in_fake, _ = balls_around(real, fake, neighbour_radius(fake, k))
    return (in_real > 0).float(), (in_fake > 0).float()


def density_coverage(real: Tensor, fake: Tensor, k: int = K_DENSITY) -> tuple[Tensor, Tensor]:
    """Density and coverage (Naeem et al. 2020, eq. 3 and 4), before the mean: how many real balls each
    fake lies in, over k, [M], and which real balls hold a fake, [N], as 0 or 1.

    Arguments as in `precision_recall`."""
    real, fake = _centre(real, fake)
    inside, covered = balls_around(fake, real, neighbour_radius(real, k))
    return inside.float() / k, covered.float()


def _centre(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Moved to the mean of the reals: distances stay, and their rounding error shrinks with the norms."""
    mean = real.mean(0)
    return real - mean, fake - mean


# --- Measuring -------------------------------------------------------------------------------------------


def measure_sampling(features: Features, generated: Tensor, real: Tensor, reference: Tensor) -> Results:
    """Compare generated with real features, and real ones with others for the floor.

    Args:
        features: what the rows are.
        generated, real: [N, d].
        reference: of real images from another split, [M, d] with M <= N.
    """
    all_names = sampling_names(features)
    distance = all_names[0]
    n = len(reference)
    floor = _frechet(reference, real[:n], "the floor: images of another split", better=None)
    if not bool(generated.isfinite().all()):
        broken = Skipped("some features of the generated images are not finite")
        return {**dict.fromkeys(all_names, broken), f"{distance}_real": floor}
    note = "; ".join(filter(None, [features.note, "generated: means of p(x|z); se by the delta method"]))
    results: Results = {distance: _frechet(generated, real, note), f"{distance}_real": floor}
    for names, compare, k in (
        (("precision", "recall"), precision_recall, K_PRECISION),
        (("density", "coverage"), density_coverage, K_DENSITY),
    ):
        if len(real) <= k:
            too_few = Skipped(f"{k} neighbours need more than {k} images")
            results |= dict.fromkeys((f"{name}_{features.name}" for name in names), too_few)
            continue
        for name, values in zip(names, compare(real, generated, k)):
            note = f"k={k}, se with the neighbourhoods as they are"
            results[f"{name}_{features.name}"] = average(values, "", "higher", note)
    return results


def sampling_names(features: Features) -> list[str]:
    """Names of what is measured on generated images."""
    distance = "fid" if features.is_inception else f"frechet_{features.name}"
    others = (f"{name}_{features.name}" for name in ("precision", "recall", "density", "coverage"))
    return [distance, *others]


def _frechet(a: Tensor, b: Tensor, note: str, better: Better | None = "lower") -> Result:
    if min(len(a), len(b)) < 2:
        return Skipped("a covariance needs at least 2 images")
    value = frechet_distance(*moments(a), *moments(b))
    variance = frechet_variance(a, b)
    squared, se = torch.stack([value, variance.sqrt()]).tolist()
    return Metric(squared, len(a), "squared distance", se, better, note)
