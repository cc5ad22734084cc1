"""`evaluate`: every measurement of the suite, in reading order."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vaezoo
from vaezoo.autoencoder import Autoencoder, evaluation_mode
from vaezoo.data import ImageData, Split, load_data
from vaezoo.errors import NotFittedError, VaezooError, unknown
from vaezoo.evaluation import disentanglement
from vaezoo.evaluation.disentanglement import measure_disentanglement
from vaezoo.evaluation.features import Features, make_features
from vaezoo.evaluation.latents import measure_latents
from vaezoo.evaluation.likelihood import measure_likelihood
from vaezoo.evaluation.observe import batches, observe
from vaezoo.evaluation.reconstruction import measure_reconstruction
from vaezoo.evaluation.report import Report, Results, Skipped
from vaezoo.evaluation.sampling import extract, measure_sampling, sampling_names
from vaezoo.priors import PRIORS
from vaezoo.random import derive, generator, seeded
from vaezoo.registry import MODELS, Registry

AXES = ("reconstruction", "likelihood", "sampling", "latents", "disentanglement")


def evaluate(
    model: Autoencoder,
    data: Any,
    *,
    split: str = "test",
    n: int = 10_000,
    samples: int = 50,
    likelihood_n: int = 1000,
    features: str | nn.Module | Callable[[Tensor], Tensor] = "pixels",
    axes: Collection[str] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Report:
    """Measure a model on a data set, on the model's device.

    The same call gives the same report; what one axis measures does not depend on which others are asked for.
    Torch's global random state is left as it was.

    Args:
        model: any model of the contract; it is put into eval mode for the time being.
        data: whatever `load_data` takes: a name, a path, images, an `ImageData`.
        split: "test", "validation" or "train".
        n: measure on at most this many images of the split, drawn without replacement, and as many samples.
        samples: k of the importance-weighted bound on log p(x).
        likelihood_n: images for that bound.
        features: what generated and real images are compared in: "pixels", "inception" (then the distance is
            FID), or your own module or function [B, C, H, W] -> [B, d].
        axes: some of `AXES`; None: all.
        seed: draws images, z, samples and factors.
        batch_size: images at a time.
        progress: show bars.

    Raises:
        VaezooError: an unknown axis, split or features, a number below 1, images of another shape.
    """
    chosen = AXES if axes is None else tuple(axes)
    for axis in chosen:
        if axis not in AXES:
            raise VaezooError(unknown("axis", axis, AXES))
    numbers = {"n": n, "samples": samples, "likelihood_n": likelihood_n, "batch_size": batch_size}
    for name, number in numbers.items():
        if number < 1:
            raise VaezooError(f"evaluate: {name}={number} is not valid, it must be at least 1")
    reference = next(iter([*model.parameters(), *model.buffers()]))
    device, dtype = reference.device, reference.dtype
    data = load_data(data, device=device).to(device)
    if split not in data.splits:
        raise VaezooError(unknown("split", split, data.splits))
    if tuple(data.image_shape) != tuple(model.config.image_shape):
        raise VaezooError(
            f"the model takes images {tuple(model.config.image_shape)}, those of {data.name} are "
            f"{tuple(data.image_shape)} (channels, height, width)"
        )
    images = data.splits[split].subset(n, derive(seed, "images"))

    def bar(name: str) -> str | None:
        return name if progress else None

    results: dict[str, Results] = {}
    with evaluation_mode(model), full_precision():
        if {"reconstruction", "likelihood", "latents"} & set(chosen):
            with seeded(derive(seed, "observe"), device):
                draws = generator(derive(seed, "posterior"), device)
                observed = observe(model, batches(images, batch_size, dtype, bar("images")), draws)
        if "reconstruction" in chosen:
            results["reconstruction"] = measure_reconstruction(observed)
        if "likelihood" in chosen:
            with seeded(derive(seed, "likelihood"), device):
                few = batches(images.first(likelihood_n), batch_size, dtype, bar("likelihood"))
                draws = generator(derive(seed, "importance"), device)
                results["likelihood"] = measure_likelihood(model, observed, few, samples, draws)
        if "sampling" in chosen:
            with seeded(derive(seed, "sampling"), device):
                used = make_features(features, data.image_shape, device)
                other = data.validation if split == "train" else data.train
                results["sampling"] = _sampling(model, used, images, other, seed, batch_size, dtype, bar)
        if "latents" in chosen:
            results["latents"] = measure_latents(observed)
        if "disentanglement" in chosen:
            with seeded(derive(seed, "disentanglement"), device):
                part = data.splits[split]
                results["disentanglement"] = _disentanglement(model, data, part, seed, batch_size, dtype, bar)

    header = {
        "model": _model_header(model),
        "data": data.header(),
        "split": split,
        "n": len(images),
        "samples": samples,
        "likelihood_n": min(likelihood_n, len(images)),
        "axes": [axis for axis in AXES if axis in chosen],
        "seed": seed,
        "batch_size": batch_size,
        "versions": {
            "vaezoo": vaezoo.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
    }
    flat = {f"{axis}/{name}": r for axis in AXES for name, r in results.get(axis, {}).items()}
    return Report.of(header, flat)


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, float32 is float32 on a GPU too: variances as differences do not survive TF32's 10 bits."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def _sampling(
    model: Autoencoder,
    features: Features,
    images: Split,
    other: Split,
    seed: int,
    batch_size: int,
    dtype: torch.dtype,
    bar: Callable[[str], str | None],
) -> Results:
    """Samples from the model's prior against the images; as many images of another split for the floor."""
    try:
        model.require_prior()
    except NotFittedError as error:
        return dict.fromkeys(sampling_names(features), Skipped(str(error)))
    draws = generator(derive(seed, "samples"), next(model.parameters()).device)

    def generated() -> Iterator[Tensor]:
        for start in range(0, len(images), batch_size):
            yield model.sample(min(batch_size, len(images) - start), draws)

    reference = other.subset(len(images), derive(seed, "reference"))
    return measure_sampling(
        features,
        extract(features, generated()),
        extract(features, batches(images, batch_size, dtype, bar("features"))),
        extract(features, batches(reference, batch_size, dtype, bar("features"))),
    )


def _disentanglement(
    model: Autoencoder,
    data: ImageData,
    split: Split,
    seed: int,
    batch_size: int,
    dtype: torch.dtype,
    bar: Callable[[str], str | None],
) -> Results:
    """Codes of images of known factors: rendered from uniform draws where the data can, else a subset."""
    latent = model.latent
    if not data.factors:
        return {"mig": Skipped(f"{data.name} has no ground-truth factors")}
    if latent.codes is not None or [len(shape) for shape in latent.shapes] != [1]:
        return {"mig": Skipped("the latents are code grids, not one vector")}
    render: Callable[[Tensor], Tensor] | None = getattr(split, "render", None)
    if render is not None:
        draws = generator(derive(seed, "factors"), "cpu")  # on the CPU: the same factors on every device
        n = disentanglement.POINTS
        columns = [torch.randint(factor.size, (n,), generator=draws) for factor in data.factors]
        factors = torch.stack(columns, 1).to(split.device)
        images: Iterator[Tensor] = (render(rows).to(dtype) for rows in factors.split(batch_size))
        how = "factors drawn uniformly and independently"
    else:
        subset = split.subset(disentanglement.POINTS, derive(seed, "factors"))
        assert subset.factors is not None, "data with factors has them in every split"
        factors = subset.factors
        images = batches(subset, batch_size, dtype, bar("factors"))
        how = "images of the split, drawn without replacement"
    codes = torch.cat([_vector(model.represent(x)) for x in images])
    return measure_disentanglement(codes, factors, data.factors, how)


def _vector(z: Tensor | tuple[Tensor, ...]) -> Tensor:
    assert isinstance(z, Tensor)
    return z


def _model_header(model: Autoencoder) -> dict[str, Any]:
    """Registered name (or the class, if it has none), config, prior and number of parameters."""
    prior = model.prior
    return {
        **_described(MODELS, model),
        "prior": None if prior is None else _described(PRIORS, prior),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _described(registry: Registry[Any], instance: Any) -> dict[str, Any]:
    try:
        name = registry.name_of(type(instance))
    except VaezooError:
        name = type(instance).__qualname__
    return {"name": name, "config": instance.config.model_dump(mode="json")}
