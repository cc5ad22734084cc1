"""Are the latents used?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaezoo.distributions import code_counts, perplexity
from vaezoo.evaluation.report import Metric, Results, Skipped

if TYPE_CHECKING:
    from vaezoo.evaluation.observe import Observed

ACTIVE = 0.01


def active_units(means: Tensor, threshold: float = ACTIVE) -> Tensor:
    """Which dimensions have Var_x(E[z|x]) > threshold (Burda et al. 2016, section 5.2).

    means [N, D] -> bool [D]."""
    return means.double().var(0, correction=0) > threshold


def measure_latents(observed: Observed) -> Results:
    """Active units of a latent vector; perplexity, usage and dead codes of each level of code grids."""
    no_vector = Skipped("the latents are code grids, not one vector")
    no_codes = Skipped("the latents are real numbers, not codes")
    results: Results = {}
    if observed.means is None:
        results["active_units"] = no_vector
    else:
        n, dims = observed.means.shape
        active = int(active_units(observed.means).sum())
        note = f"of {dims} dimensions, Var_x(E[z|x]) > {ACTIVE}"
        results["active_units"] = Metric(active, n, "dimensions", None, "higher", note)
    if observed.codes is None or observed.codebook is None:
        return results | dict.fromkeys(("perplexity", "usage", "dead_codes"), no_codes)
    for level, codes in enumerate(observed.codes):
        counts = code_counts(codes, observed.codebook)
        suffix = f"_{level}" if len(observed.codes) > 1 else ""
        total, used = (int(v) for v in torch.stack([counts.sum(), (counts > 0).sum()]).tolist())
        size = len(counts)
        note = f"{size} codes, n counts positions" + (", level 0 is the coarsest" if suffix else "")
        results |= {
            f"perplexity{suffix}": Metric(perplexity(counts).item(), total, "codes", None, "higher", note),
            f"usage{suffix}": Metric(used / size, total, "fraction of the codes", None, "higher", note),
            f"dead_codes{suffix}": Metric(size - used, total, "codes", None, "lower", note),
        }
    return results
