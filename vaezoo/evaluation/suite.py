"""`evaluate`: every measurement of the suite, in reading order."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import vaezoo
from vaezoo.autoencoder import Autoencoder
from vaezoo.data import ImageData, Split, load_data
from vaezoo.errors import NotFittedError, VaezooError, unknown
from vaezoo.evaluation import disentanglement
from vaezoo.evaluation.aggregate import measure_aggregate
from vaezoo.evaluation.annealing import measure_annealing
from vaezoo.evaluation.disentanglement import (
    METRICS,
    OF_FACTORS,
    PROTOCOLS,
    Protocol,
    measure_disentanglement,
)
from vaezoo.evaluation.features import Features, make_features
from vaezoo.evaluation.latents import measure_latents
from vaezoo.evaluation.likelihood import measure_likelihood
from vaezoo.evaluation.lpips import make_lpips
from vaezoo.evaluation.memorisation import measure_memorisation, memorisation_names
from vaezoo.evaluation.observe import observe
from vaezoo.evaluation.reconstruction import measure_reconstruction
from vaezoo.evaluation.report import Report, Results, Skipped
from vaezoo.evaluation.sampling import extract, measure_sampling, sampling_names
from vaezoo.evaluation.unsupervised import UNSUPERVISED, measure_unsupervised
from vaezoo.inference import evaluation_mode
from vaezoo.priors import PRIORS
from vaezoo.random import derive, generator, seeded
from vaezoo.registry import MODELS, Registry

DRAWN = "images of the split, drawn without replacement"
AXES = ("reconstruction", "likelihood", "sampling", "latents", "disentanglement")


def evaluate(
    model: Autoencoder,
    data: Any,
    *,
    split: str = "test",
    n: int = 10_000,
    samples: int = 50,
    likelihood_n: int = 1000,
    annealing: int = 0,
    features: str | nn.Module | Callable[[Tensor], Tensor] = "auto",
    training_n: int | None = None,
    axes: Collection[str] | None = None,
    protocol: str = "quick",
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
        annealing: images for annealed importance sampling, which needs no q(z|x) but some seconds for each
            image; 0: not measured.
        features: what images are compared in: "auto" (the classifier that comes with the package for the
            data set, "mnist", "fashion_mnist" or "sprites", else "pixels"), one of these by name,
            "inception" (then the distance is FID), "dinov2", or your own module or function
            [B, C, H, W] -> [B, d].
        training_n: training images among which those nearest to the samples are looked for; None: `n`.
        axes: some of `AXES`; None: all.
        protocol: counts of the disentanglement metrics: "locatello2019", those of the paper; "quick",
            smaller ones, not to be compared with published numbers.
        seed: draws images, z, samples and factors.
        batch_size: images at a time.
        progress: show bars.

    Raises:
        VaezooError: an unknown axis, protocol, split or features, a number below 1, images of another shape.
    """
    chosen = AXES if axes is None else tuple(axes)
    for axis in chosen:
        if axis not in AXES:
            raise VaezooError(unknown("axis", axis, AXES))
    if protocol not in PROTOCOLS:
        raise VaezooError(unknown("protocol", protocol, PROTOCOLS))
    training_n = n if training_n is None else training_n
    numbers = {
        "n": n,
        "samples": samples,
        "likelihood_n": likelihood_n,
        "training_n": training_n,
        "batch_size": batch_size,
    }
    for name, number in numbers.items():
        if number < 1:
            raise VaezooError(f"evaluate: {name}={number} is not valid, it must be at least 1")
    if annealing < 0:
        raise VaezooError(f"evaluate: annealing={annealing} is not valid, it must be at least 0")
    weights = next(model.parameters())
    device = weights.device
    data = load_data(data, device=device).to(device)
    if split not in data.splits:
        raise VaezooError(unknown("split", split, data.splits))
    if tuple(data.image_shape) != tuple(model.config.image_shape):
        raise VaezooError(
            f"the model takes images {tuple(model.config.image_shape)}, those of {data.name} are "
            f"{tuple(data.image_shape)} (channels, height, width)"
        )
    compared = make_features(features, data.image_shape, device, data.name)
    reconstructs = "reconstruction" in chosen
    lpips = make_lpips(data.image_shape, device) if reconstructs else Skipped("not asked for")
    images = data.splits[split].subset(n, derive(seed, "images"))
    run = Run(model, device, weights.dtype, seed, batch_size, progress)

    results: dict[str, Results] = {}
    with evaluation_mode(model), full_precision():
        real = None
        if {"reconstruction", "likelihood", "latents"} & set(chosen):
            with run.seeded("observe"):
                observed = observe(
                    model,
                    run.batches(images, "images"),
                    run.generator("posterior"),
                    rate="likelihood" in chosen,
                    features=compared if reconstructs else None,
                    lpips=lpips,
                )
            real = observed.features_real
        if reconstructs:
            results["reconstruction"] = measure_reconstruction(observed, compared, lpips)
        if "likelihood" in chosen:
            with run.seeded("likelihood"):
                few = run.batches(images.first(likelihood_n), "likelihood")
                draws = run.generator("importance")
                results["likelihood"] = measure_likelihood(model, observed, few, samples, draws)
        if "likelihood" in chosen and annealing:
            with run.seeded("annealing"):
                few = run.batches(images.first(annealing), "annealing")
                chains = derive(seed, "chains")
                results["likelihood"] |= measure_annealing(model, observed, few, chains)
        if "sampling" in chosen:
            if real is None:
                with run.seeded("observe"):  # the pixels of that pass, where they are binarised dynamically
                    real = extract(compared, run.batches(images, "features"))
            with run.seeded("sampling"):
                results["sampling"] = _sampling(run, compared, images, real, data, split, training_n)
        if "latents" in chosen:
            results["latents"] = {
                **measure_latents(observed, run.generator("resamples")),
                **measure_aggregate(model, observed, derive(seed, "aggregate")),
            }
        if "disentanglement" in chosen:
            with run.seeded("disentanglement"):
                results["disentanglement"] = _disentanglement(
                    run, data, data.splits[split], PROTOCOLS[protocol]
                )

    header = {
        "model": _model_header(model),
        "data": data.header(),
        "split": split,
        "n": len(images),
        "samples": samples,
        "likelihood_n": min(likelihood_n, len(images)),
        "annealing": min(annealing, len(images)),
        "features": compared.header(),
        "training_n": training_n,
        "protocol": protocol,
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


@dataclass(frozen=True)
class Run:
    """What every measurement of one `evaluate` call shares."""

    model: Autoencoder
    device: torch.device
    dtype: torch.dtype
    seed: int
    batch_size: int
    progress: bool

    def generator(self, purpose: str) -> torch.Generator:
        """A stream of its own for each purpose, on the model's device."""
        return generator(derive(self.seed, purpose), self.device)

    def seeded(self, purpose: str) -> AbstractContextManager[None]:
        """Torch's default generators, which dynamic binarisation draws from, start from the seed inside."""
        return seeded(derive(self.seed, purpose), self.device)

    def batches(self, split: Split, title: str) -> Iterator[Tensor]:
        """All images of a split in order, [B, C, H, W]; the last batch may be smaller."""
        rows = torch.arange(len(split), device=split.device).split(self.batch_size)
        for indices in tqdm(rows, desc=title, disable=not self.progress, leave=False):
            yield split.batch(indices).to(self.dtype)


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
    run: Run,
    features: Features,
    images: Split,
    real: Tensor,
    data: ImageData,
    split: str,
    training_n: int,
) -> Results:
    """Samples from the model's prior against the images, whose features are `real`, [N, d]; images of another
    split for the floor, and training images to find copies of."""
    try:
        run.model.require_prior()
    except NotFittedError as error:
        names = [*sampling_names(features), *memorisation_names(features)]
        return dict.fromkeys(names, Skipped(str(error)))
    draws = run.generator("samples")
    starts = range(0, len(images), run.batch_size)
    samples = (
        run.model.sample(min(run.batch_size, len(images) - start), draws)
        for start in tqdm(starts, desc="samples", disable=not run.progress, leave=False)
    )
    trained = split == "train"
    other = data.validation if trained else data.train
    rows = other.draw(len(images) if trained else max(len(images), training_n), derive(run.seed, "reference"))
    generated = extract(features, samples)
    reference = extract(features, run.batches(other.view(rows), "features"))
    if trained:
        training, held_out = real, reference
        rows = data.train.draw(len(images), derive(run.seed, "images"))
    else:
        training, held_out = reference[:training_n], real
    seed = derive(run.seed, "sampling metrics")
    return {
        **measure_sampling(features, generated, real, reference, seed),
        **measure_memorisation(features, generated, training, held_out, rows, len(data.train), seed),
    }


def _disentanglement(run: Run, data: ImageData, split: Split, protocol: Protocol) -> Results:
    """Codes of images of known factors, rendered from uniform draws where the data can, else of a subset.
    Where the data has no factors, the scores that need none."""
    unnamed = Skipped(f"{data.name} has no ground-truth factors")
    if not run.model.latent.is_vector:
        grids = Skipped("the latents are code grids, not one vector")
        return {name: grids if data.factors or name in UNSUPERVISED else unnamed for name in METRICS}
    if not data.factors:
        subset = split.subset(disentanglement.POINTS, derive(run.seed, "factors"))
        codes = torch.cat([run.model.encode(x).mean for x in run.batches(subset, "codes")])
        return dict.fromkeys(OF_FACTORS, unnamed) | measure_unsupervised(codes, DRAWN)
    render: Callable[[Tensor], Tensor] | None = getattr(split, "render", None)
    encode: Callable[[Tensor], Tensor] | None = None
    if render is not None:

        def encode(factors: Tensor) -> Tensor:
            parts = factors.to(split.device).split(run.batch_size)
            return torch.cat([run.model.encode(render(rows).to(run.dtype)).mean for rows in parts])

        parts = []
        for purpose, n in (("factors", disentanglement.POINTS), ("test factors", protocol.test)):
            draws = generator(derive(run.seed, purpose), "cpu")  # the same factors on every device
            columns = [torch.randint(factor.size, (n,), generator=draws) for factor in data.factors]
            parts.append(torch.stack(columns, 1))
        factors = torch.cat(parts).to(split.device)
        codes = encode(factors)
        how = "factors drawn uniformly and independently"
    else:
        subset = split.subset(disentanglement.POINTS + protocol.test, derive(run.seed, "factors"))
        assert subset.factors is not None, "data with factors has them in every split"
        factors = subset.factors
        codes = torch.cat([run.model.encode(x).mean for x in run.batches(subset, "factors")])
        how = DRAWN
    seed = derive(run.seed, "disentanglement scores")
    return measure_disentanglement(
        codes, factors, data.factors, how, protocol=protocol, encode=encode, seed=seed
    )


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
