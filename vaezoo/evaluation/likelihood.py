"""How probable does the model find images that it has not seen?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaezoo.autoencoder import Autoencoder
from vaezoo.errors import NotFittedError
from vaezoo.evaluation.report import Results, Skipped, average

if TYPE_CHECKING:
    from vaezoo.evaluation.observe import Observed

POINT_MASS = "q(z|x) is a point mass over real vectors: its rate is infinite, and the bound minus infinity"
CROSS_ENTROPY = "cross-entropy on grey levels, which is not normalised over them"


def bits_per_dimension(log_prob: Tensor, dims: int) -> Tensor:
    """-log2 p(x) / D of log p(x) [N] in nats."""
    return -log_prob / (dims * math.log(2))


def dequantize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(255 x + u) / 256 with u uniform on [0, 1): grey levels fill [0, 1], each of them 1/256 (Theis et al.
    2016, section 3.1). A density p bounds their probability: log P(x) >= E_u log p(x') - D log 256."""
    noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return (255 * x + noise) / 256


def measure_likelihood(
    model: Autoencoder,
    observed: Observed,
    images: Iterator[Tensor],
    samples: int,
    generator: torch.Generator,
) -> Results:
    """ELBO and its two parts on the observed images; the importance-weighted bound and bits/dim on `images`.

    Args:
        model: with a prior, or all is skipped.
        observed: the pass over the evaluated images.
        images: batches for the importance-weighted bound.
        samples: k of that bound.
        generator: draws z and the dequantisation noise.
    """
    columns = observed.per_image
    names = ("distortion", "rate", "elbo", "log_likelihood", "bits_per_dim")
    distortion = average(columns["distortion"], "nats per image", "lower", "-log p(x|z) at z ~ q(z|x)")
    try:
        model.require_prior()
    except NotFittedError as error:
        return {"distortion": distortion, **dict.fromkeys(names[1:], Skipped(str(error)))}
    if observed.deterministic and bool(columns["rate"].isposinf().any()):
        return {"distortion": distortion, **dict.fromkeys(names[1:], Skipped(POINT_MASS))}

    grey = observed.measure == "binary" and not observed.binary
    note = CROSS_ENTROPY if grey else ""
    results: Results = {
        "distortion": distortion,
        "rate": average(columns["rate"], "nats per image", None, "KL(q(z|x) || p(z))"),
        "elbo": average(-columns["distortion"] - columns["rate"], "nats per image", "higher", note),
    }

    dense = observed.measure == "density" and observed.eight_bit
    bounds, spread = [], []
    for x in images:
        bounds.append(model.log_prob(x, samples, generator))
        if dense:
            spread.append(model.log_prob(dequantize(x, generator), samples, generator))
    bound = torch.cat(bounds)
    how = f"importance-weighted bound, k={samples}"
    if observed.deterministic:
        how = "log p(x|z) + log p(z) at the codes of x"
    full_note = "; ".join(filter(None, [how, note]))
    results["log_likelihood"] = average(bound, "nats per image", "higher", full_note)

    dims = math.prod(observed.shape)
    if grey:
        results["bits_per_dim"] = Skipped(f"the log-likelihood is a {CROSS_ENTROPY}")
    elif observed.measure == "density" and not dense:
        results["bits_per_dim"] = Skipped(
            "a density gives probabilities of 8-bit levels, and some pixels are none"
        )
    else:
        bits = bits_per_dimension(torch.cat(spread), dims) + 8 if dense else bits_per_dimension(bound, dims)
        noise = "; uniform dequantisation (255x + u)/256, +8 bits" if dense else ""
        results["bits_per_dim"] = average(bits, "bits", "lower", f"{how}{noise}")
    return results
