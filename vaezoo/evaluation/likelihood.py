"""How probable does the model find images that it has not seen?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaezoo.autoencoder import Autoencoder
from vaezoo.errors import NotFittedError
from vaezoo.evaluation.report import Detail, Result, Results, Skipped, average
from vaezoo.inference import evaluation_mode

if TYPE_CHECKING:
    from vaezoo.evaluation.observe import Observed

POINT_MASS = "q(z|x) is a point mass over real vectors: its rate is infinite, and the bound minus infinity"
CROSS_ENTROPY = "cross-entropy on grey levels, which is not normalised over them"
ONE_SAMPLE = "q(z|x) is a point mass over codes: one sample is exact"
NO_CODES = "the latents are real numbers, not codes"

BITS = ("bits_per_dim", "bits_per_dim_uniform")
CODE_METRICS = ("code_length", "bits_per_code", "code_saving")


def bits_per_dimension(log_prob: Tensor, dims: int) -> Tensor:
    """-log2 p(x) / D of log p(x) [N] in nats."""
    return -log_prob / (dims * math.log(2))


def dequantize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(255 x + u) / 256 with u uniform on [0, 1): grey levels fill [0, 1], each of them 1/256 (Theis et al.
    2016, section 3.1). A density p bounds their probability: log P(x) >= E_u log p(x') - D log 256."""
    noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return (255 * x + noise) / 256


def effective_samples(log_weights: Tensor) -> Tensor:
    """Effective sample size (sum w)^2 / sum w^2 of importance weights (Kong 1992), from 1 to k: [B].

    log_weights [k, B]; any constant may be added to a column."""
    return torch.exp(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0))


def curve_sizes(samples: int) -> list[int]:
    """1, 5, 50, 500, ... below `samples`, and `samples`."""
    sizes = [1, *(5 * 10**i for i in range(len(str(samples))))]
    return [k for k in sizes if k < samples] + [samples]


def bound_curve(log_weights: Tensor, sizes: list[int]) -> Tensor:
    """Importance-weighted bounds log 1/k sum w for every k of `sizes`, [len(sizes), B] nats.

    Each is the mean over all disjoint groups of k draws; what is left of the draws is not used.
    log_weights [samples, B]."""
    samples, n = log_weights.shape
    bounds = []
    for k in sizes:
        groups = log_weights[: samples // k * k].view(-1, k, n)
        bounds.append(groups.logsumexp(1).mean(0) - math.log(k))
    return torch.stack(bounds)


def caveat(observed: Observed) -> str:
    """What is wrong with the likelihood of these images, or ""."""
    return CROSS_ENTROPY if observed.measure == "binary" and not observed.binary else ""


def measure_likelihood(
    model: Autoencoder,
    observed: Observed,
    images: Iterator[Tensor],
    samples: int,
    generator: torch.Generator,
) -> Results:
    """ELBO, its two parts and the length of codes on the observed images; the importance-weighted bound, how
    it depends on k, its effective samples and bits/dim on `images`. Standard errors are over images.

    Args:
        model: with a prior, or all is skipped.
        observed: the pass over the evaluated images.
        images: batches for the importance-weighted bound.
        samples: k of that bound.
        generator: draws z and the dequantisation noise.
    """
    columns = observed.per_image
    names = ("rate", "elbo", "log_likelihood", "effective_samples", *BITS, *CODE_METRICS)
    distortion = average(columns["distortion"], "nats per image", "lower", "-log p(x|z) at z ~ q(z|x)")
    try:
        model.require_prior()
    except NotFittedError as error:
        return {"distortion": distortion, **dict.fromkeys(names, Skipped(str(error)))}
    if observed.deterministic and bool(columns["rate"].isposinf().any()):
        return {"distortion": distortion, **dict.fromkeys(names, Skipped(POINT_MASS))}

    note = caveat(observed)
    results: Results = {
        "distortion": distortion,
        "rate": average(columns["rate"], "nats per image", None, "KL(q(z|x) || p(z))"),
        "elbo": average(-columns["distortion"] - columns["rate"], "nats per image", "higher", note),
    }

    dense = observed.measure == "density" and observed.eight_bit
    no_bits = f"the log-likelihood is a {CROSS_ENTROPY}" if note else ""
    if observed.measure == "density" and not dense:
        no_bits = "a density gives probabilities of 8-bit levels, and some pixels are none"
    coded = observed.codes is not None and observed.deterministic and not no_bits
    sizes = curve_sizes(1 if observed.deterministic else samples)
    curves, effective, spread, rates = [], [], [], []
    with evaluation_mode(model):
        for x in images:
            log_weights = model.log_weights(x, samples, generator).double()
            curves.append(bound_curve(log_weights, sizes))
            effective.append(effective_samples(log_weights))
            if dense:
                x = dequantize(x, generator)
                spread.append(model.log_prob(x, samples, generator))
            if coded:
                q = model.encode(x)  # of the very images whose bits are measured
                rates.append(model.rate(q, q.draw()))
    curve = torch.cat(curves, 1)
    bound = curve[-1]
    how = f"importance-weighted bound, k={samples}"
    if observed.deterministic:
        how = "log p(x|z) + log p(z) at the codes of x"
    full_note = "; ".join(filter(None, [how, note]))
    results["log_likelihood"] = average(bound, "nats per image", "higher", full_note)
    if observed.deterministic:
        results["effective_samples"] = Skipped(ONE_SAMPLE)
    else:
        results["k_curve"] = _k_curve(curve, sizes, note)
        results["effective_samples"] = _effective(torch.cat(effective), samples)

    dims = math.prod(observed.shape)
    results |= dict.fromkeys(BITS, Skipped(no_bits))
    if observed.codes is None:
        results["bits_per_dim_uniform"] = Skipped(NO_CODES)
    if not no_bits:
        bits = bits_per_dimension(torch.cat(spread), dims) + 8 if dense else bits_per_dimension(bound, dims)
        noise = "; uniform dequantisation (255x + u)/256, +8 bits" if dense else ""
        results["bits_per_dim"] = average(bits, "bits", "lower", f"{how}{noise}")
    if coded:
        uniform = _uniform_bits(observed)
        bits = bits + (uniform - torch.cat(rates).double() / math.log(2)) / dims
        note = f"bits_per_dim with {uniform:.5g} bits for the codes of each image"
        results["bits_per_dim_uniform"] = average(bits, "bits", "lower", note)
    return results | _code_length(observed)


def _uniform_bits(observed: Observed) -> float:
    """Of the codes of an image, log2 K for each; 0 where the latents are no codes."""
    positions = sum(level.shape[1] for level in observed.codes or ())
    return positions * math.log2(observed.codebook or 1)


def _k_curve(curve: Tensor, sizes: list[int], note: str) -> Detail:
    """The means of bounds [len(sizes), N] over images."""
    n = curve.shape[1]
    errors = (curve.var(1, correction=min(1, n - 1)) / n).sqrt()
    how = f"n={n}; bounds at small k over disjoint groups of the same draws; se over images, shared by all k"
    return Detail(
        curve.mean(1).tolist(),
        axes=("samples",),
        labels=(tuple(map(str, sizes)),),
        unit="nats per image",
        se=errors.tolist() if n > 1 else None,
        note="; ".join(filter(None, [how, note])),
    )


def _effective(effective: Tensor, samples: int) -> Result:
    """Mean of effective samples [N]; as a share of k in the note."""
    mean, smallest = (torch.stack([effective.mean(), effective.min()]) / samples).tolist()
    note = f"{mean:.1%} of k={samples}, {smallest:.1%} for the worst image"
    return average(effective, "samples", "higher", note)


def _code_length(observed: Observed) -> Results:
    """-log2 p(codes) under the prior, which arithmetic coding attains, and its saving on a uniform code."""
    if observed.codes is None or observed.codebook is None:
        return dict.fromkeys(CODE_METRICS, Skipped(NO_CODES))
    positions = sum(level.shape[1] for level in observed.codes)
    uniform = _uniform_bits(observed)
    bits = observed.per_image["rate"].double() / math.log(2)
    note = f"{positions} positions of {observed.codebook} codes, {uniform:.5g} bits without a prior"
    return {
        "code_length": average(bits, "bits per image", "lower", f"-log2 p(codes); {note}"),
        "bits_per_code": average(bits / positions, "bits per position", "lower"),
        "code_saving": average(1 - bits / uniform, "fraction of the bits", "higher", note),
    }
