"""Are the latents used?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaezoo.distributions import DiagonalGaussian, code_counts, perplexity
from vaezoo.evaluation.aggregate import NO_VECTOR, POINT_MASSES
from vaezoo.evaluation.report import Detail, Metric, Result, Results, Skipped

if TYPE_CHECKING:
    from vaezoo.evaluation.observe import Observed

ACTIVE = 0.01
RESAMPLES = 200

NO_CODES = "the latents are real numbers, not codes"
CODES = ("perplexity", "usage", "dead_codes", "code_usage")


def measure_latents(observed: Observed, generator: torch.Generator) -> Results:
    """What each dimension of a latent vector does; how the codes of each level of code grids are used.

    Args:
        observed: the pass over the evaluated images.
        generator: resamples images, for the error of the count of active units.
    """
    if observed.codes is None or observed.codebook is None:
        codes: Results = dict.fromkeys(CODES, Skipped(NO_CODES))
    else:
        codes = {
            name + (f"_{level}" if len(observed.codes) > 1 else ""): result
            for level, grid in enumerate(observed.codes)
            for name, result in measure_codes(grid, observed.codebook).items()
        }
    return measure_dimensions(observed, generator) | codes


# --- Vectors ----------------------------------------------------------------------------------------------


def active_units(means: Tensor, threshold: float = ACTIVE) -> Tensor:
    """Which dimensions have Var_x(E[z|x]) > threshold (Burda et al. 2016, section 5.2).

    means [N, D] -> bool [D]."""
    return means.double().var(0, correction=0) > threshold


def resampled_active_units(means: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """How many units are active in `RESAMPLES` bootstrap resamples of the images. means [N, D] -> [R]."""
    n = len(means)
    drawn = torch.randint(n, (RESAMPLES, n), device=means.device, generator=generator)
    ones = torch.ones(RESAMPLES, n, dtype=torch.float64, device=means.device)
    weights = torch.zeros_like(ones).scatter_add_(1, drawn, ones) / n
    centred = means.double() - means.double().mean(0)
    variances = weights @ centred.square() - (weights @ centred).square()
    return (variances > ACTIVE).sum(1)


def variance_of_means(means: Tensor) -> tuple[Tensor, Tensor]:
    """Var_x(E[z|x]) of each dimension, and its standard error by the delta method. [N, D] -> [D], [D]."""
    squares = (means.double() - means.double().mean(0)).square()
    return squares.mean(0), squares.std(0, correction=0) / math.sqrt(len(means))


def measure_dimensions(observed: Observed, generator: torch.Generator) -> Results:
    """Active units, the variances that make them so, and the rate of each dimension."""
    names = ("active_units", "variance_of_means", "kl_per_dimension")
    means, log_variances = observed.means, observed.log_variances
    if means is None:
        return dict.fromkeys(names, Skipped(NO_VECTOR))
    n, dims = means.shape
    if n < 2:
        return dict.fromkeys(names, Skipped("a variance over images needs at least 2 of them"))
    if not bool(means.isfinite().all()):
        return dict.fromkeys(names, Skipped("some means of q(z|x) are not finite"))
    resampled = resampled_active_units(means, generator).double().std()
    active, se = torch.stack([active_units(means).sum().double(), resampled]).tolist()
    note = f"of {dims} dimensions, Var_x(E[z|x]) > {ACTIVE}; se by {RESAMPLES} bootstrap resamples"
    variances, errors = variance_of_means(means)
    results: Results = {
        "active_units": Metric(active, n, "dimensions", se, "higher", note),
        "variance_of_means": _by_dimension(variances, errors, "Var_x(E[z|x])", ""),
    }
    if log_variances is None:
        kind = POINT_MASSES if observed.deterministic else "q(z|x) is not a diagonal Gaussian"
        results["kl_per_dimension"] = Skipped(kind)
    else:
        kl = DiagonalGaussian(means.double(), log_variances.double()).kl_per_dimension()
        errors = kl.std(0) / math.sqrt(n)
        note = "KL(q(z_d|x) || N(0, 1)), mean over images"
        results["kl_per_dimension"] = _by_dimension(kl.mean(0), errors, note, "nats per image")
    return results


def _by_dimension(values: Tensor, errors: Tensor, note: str, unit: str) -> Result:
    """values and errors [D]."""
    if not bool(values.isfinite().all()):
        return Skipped("some values are not finite")
    return Detail(values.tolist(), ("dimension",), unit=unit, se=errors.tolist(), note=note)


# --- Codes ------------------------------------------------------------------------------------------------


def surprise(codes: Tensor, counts: Tensor) -> Tensor:
    """-log p of the codes of each image, averaged over its positions: [N] nats.

    p is `counts` over their sum. With the counts of these images, the mean is the entropy of the codes, and
    an image's deviation from the mean is its influence on the entropy.

    Args:
        codes: [N, positions].
        counts: of all codes, [K].
    """
    cost = -(counts / counts.sum()).log()
    return cost[codes.long()].mean(1)


def codes_of_one_image(codes: Tensor, size: int) -> Tensor:
    """How many of `size` codes occur in this image and in no other. codes [N, positions] -> float64 [N]."""
    n = len(codes)
    flat = codes.long().flatten()
    image = torch.arange(n, device=codes.device).unsqueeze(1).expand_as(codes).flatten()
    first = torch.full((size,), n, device=codes.device).scatter_reduce_(0, flat, image, "amin")
    last = torch.full((size,), -1, device=codes.device).scatter_reduce_(0, flat, image, "amax")
    # A code that does not occur has first = n and last = -1.
    in_one = (first == last).double()
    return in_one.new_zeros(n).index_add_(0, last.clamp_min(0), in_one)


def measure_codes(codes: Tensor, size: int) -> Results:
    """Perplexity, usage and dead codes of one level, codes [N, positions], with their frequencies.

    Positions of one image are not independent, so the standard errors are over images: of the perplexity by
    the delta method; of the number of codes that occur by the jackknife, where leaving an image out takes
    away the codes that no other image has.
    """
    n, positions = codes.shape
    counts = code_counts(codes, size)
    alone = codes_of_one_image(codes, size)
    entropy_variance = surprise(codes, counts).var(correction=min(1, n - 1)) / n
    used_variance = (alone - alone.mean()).square().sum() * (n - 1) / n
    statistics = torch.stack([perplexity(counts), (counts > 0).sum(), entropy_variance, used_variance])
    value, used, entropy_variance_, used_variance_ = statistics.tolist()  # the one synchronisation
    several = n > 1
    perplexity_se = value * math.sqrt(entropy_variance_) if several else None
    used_se = math.sqrt(used_variance_) if several else None
    usage_se = used_se / size if used_se is not None else None
    of = f"{size} codes, {positions} positions an image"
    jackknife = f"{of}; se by the jackknife over images"
    return {
        "perplexity": Metric(
            value, n, "codes", perplexity_se, "higher", f"{of}; se over images, delta method"
        ),
        "usage": Metric(used / size, n, "fraction of the codes", usage_se, "higher", jackknife),
        "dead_codes": Metric(size - used, n, "codes", used_se, "lower", jackknife),
        "code_usage": Detail((counts / counts.sum()).tolist(), ("code",), unit="frequency", note=of),
    }
