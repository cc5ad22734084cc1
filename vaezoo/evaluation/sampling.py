"""Do generated images look like real ones, and like all of them?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vaezoo.errors import VaezooError
from vaezoo.evaluation.features import Features
from vaezoo.evaluation.frechet import measure_frechet
from vaezoo.evaluation.kernel import kernel_distance, vendi_score
from vaezoo.evaluation.neighbours import (
    K_DENSITY,
    K_PRECISION,
    PARTS,
    at_least_single,
    neighbourhood_variances,
    neighbourhoods,
)
from vaezoo.evaluation.report import Metric, Result, Results, Skipped
from vaezoo.random import derive, generator


@torch.no_grad()
def extract(features: Features, images: Iterable[Tensor]) -> Tensor:
    """Features of batches of images [B, C, H, W], clamped to [0, 1] as a saved image would be: [N, d]."""
    return torch.cat([features.extract(x.clamp(0, 1)).flatten(1) for x in images])


def measure_sampling(
    features: Features, generated: Tensor, real: Tensor, reference: Tensor, seed: int = 0
) -> Results:
    """Compare generated with real features, and real ones with others for the floor.

    Args:
        features: what the rows are.
        generated, real: [N, d].
        reference: of real images from another split, [M, d]; no more than N of them are used.
        seed: draws halves and quarters.

    Raises:
        VaezooError: features that are not vectors of one length.
    """
    shapes = [tuple(x.shape) for x in (generated, real, reference)]
    if any(x.ndim != 2 for x in (generated, real, reference)) or len({shape[1] for shape in shapes}) > 1:
        raise VaezooError(f"features {features.name!r} must be [N, d] with one d, not {shapes}")
    generated, real, reference = (at_least_single(x) for x in (generated, real, reference))
    finite = torch.stack([x.isfinite().all() for x in (generated, real, reference)]).tolist()
    broken = [
        None if sound else Skipped(f"some features of the {what} images are not finite")
        for what, sound in zip(("generated", "real", "reference"), finite)
    ]
    distance, name = distance_name(features), features.name

    results: Results = {}
    if found := broken[1] or broken[2]:
        results[f"{distance}_real"] = found
    else:
        n = min(len(real), len(reference))
        floor = "the floor: images of another split"
        results |= measure_frechet(f"{distance}_real", reference[:n], real[:n], floor, better=None)
    results[f"vendi_{name}_real"] = broken[1] or _vendi(real, "the real images")
    if found := broken[0] or broken[1]:
        return results | dict.fromkeys(sampling_names(features), found)

    note = "; ".join(filter(None, [features.note, "generated: means of p(x|z)"]))
    draws = generator(derive(seed, "halves"), "cpu")
    results |= measure_frechet(distance, generated, real, note, generator=draws)
    results[_kernel_name(features)] = _kernel(generated, real)
    results |= _neighbourhoods(name, generated, real, generator(derive(seed, "quarters"), "cpu"))
    results[f"vendi_{name}"] = _vendi(generated, "the generated images")
    return results


def distance_name(features: Features) -> str:
    """What a Frechet distance in these features is called."""
    return "fid" if features.is_inception else f"frechet_{features.name}"


def _kernel_name(features: Features) -> str:
    return "kid" if features.is_inception else f"kernel_distance_{features.name}"


def sampling_names(features: Features) -> list[str]:
    """Names of what is measured on generated images."""
    distance = distance_name(features)
    others = (f"{name}_{features.name}" for name in ("precision", "recall", "density", "coverage", "vendi"))
    return [distance, f"{distance}_infinity", _kernel_name(features), *others]


def _kernel(generated: Tensor, real: Tensor) -> Result:
    if min(len(generated), len(real)) < 2:
        return Skipped("pairs need at least 2 images")
    value, variance = torch.stack(kernel_distance(generated, real)).tolist()
    note = "cubic kernel, unbiased, all pairs; se in closed form"
    return Metric(value, len(generated), "squared distance", variance**0.5, "lower", note)


def _neighbourhoods(name: str, generated: Tensor, real: Tensor, draws: torch.Generator) -> Results:
    names = [f"{metric}_{name}" for metric in ("precision", "recall", "density", "coverage")]
    n, most = min(len(generated), len(real)), max(K_PRECISION, K_DENSITY)
    if n <= most:
        return dict.fromkeys(names, Skipped(f"{most} neighbours need more than {most} images"))
    values = torch.stack([v.mean(dtype=torch.float64) for v in neighbourhoods(real, generated)])
    ses: list[float | None] = [None] * len(names)
    how = "too few images for a standard error"
    if n // PARTS > most:
        ses = neighbourhood_variances(real, generated, draws).sqrt().tolist()
        how = "se from quarters of the images"
    ks = (K_PRECISION, K_PRECISION, K_DENSITY, K_DENSITY)
    ns = (len(generated), len(real), len(generated), len(real))
    return {
        metric: Metric(value, count, "", se, "higher", f"k={k}, {how}")
        for metric, value, se, k, count in zip(names, values.tolist(), ses, ks, ns)
    }


def _vendi(x: Tensor, of: str) -> Result:
    if bool((x == 0).all(1).any()):
        return Skipped(f"some features of {of} are all 0, and have no cosine with others")
    if len(x) < 2:
        return Skipped("diversity needs at least 2 images")
    value, variance = torch.stack(vendi_score(x)).tolist()
    note = f"{of}, cosine kernel; se by the delta method"
    return Metric(value, len(x), "images", variance**0.5, None if of == "the real images" else "higher", note)
