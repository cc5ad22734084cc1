"""The contract: a model of the zoo is a joint distribution.

    encode(x) -> q(z|x)      decode(z) -> p(x|z)      prior = p(z)

Everything else - reconstruct, sample, represent, interpolate, traverse, log_prob - follows from these
three and is written here, once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.distributions import Distribution

from vaezoo.config import BaseConfig, check_options
from vaezoo.distributions import Delta, DiagonalGaussian, Joint, Latent, Posterior, Quantized
from vaezoo.errors import NotFittedError, VaezooError, unknown
from vaezoo.inference import inference
from vaezoo.objective import Loss, Progress
from vaezoo.priors.base import LatentShape, Prior

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "Delta",
    "DiagonalGaussian",
    "Joint",
    "Latent",
    "LatentShape",
    "Loss",
    "Posterior",
    "Prior",
    "Progress",
    "Quantized",
    "map_latent",
]

#: Images that `sample` draws at a time, which bounds the memory of the prior and the decoder.
SAMPLED_IMAGES = 256

#: Pixels that `log_weights` decodes at a time, which bounds its memory whatever the number of samples: on a
#: CPU few enough to stay in its cache, elsewhere many enough to fill the device.
DECODED_PIXELS_CPU, DECODED_PIXELS = 2**19, 2**22

#: Latents that `log_weights` has the prior score at a time. More than are decoded at a time, because a prior
#: that is made of posteriors encodes its pseudo-inputs every time.
SCORED_LATENTS = 2**13

#: Numbers that `log_weights` draws at a time. What is drawn does not depend on what is decoded at a time.
DRAWN_NUMBERS = 2**22

A = TypeVar("A", bound="Autoencoder")


class AutoencoderConfig(BaseConfig):
    """What every model has."""

    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        (1, 28, 28), description="channels, height and width of an image"
    )


def map_latent(function: Callable[..., Tensor], *latents: Latent) -> Latent:
    """Apply a function of tensors to latents, level by level where they are tuples."""
    if isinstance(latents[0], tuple):
        return tuple(function(*levels) for levels in zip(*latents, strict=True))
    return function(*latents)


class Autoencoder(nn.Module):
    """Base of every model. A subclass gives `encode`, `decode`, `losses` and, if it has one, a `prior`.

    Images x are [B, C, H, W] in [0, 1]. A latent z is a tensor [B, ...], or a tuple of tensors, coarsest
    first, for hierarchies. All losses are in nats per image: summed over pixels and latents, averaged over
    the batch.

    `represent`, `reconstruct`, `sample`, `interpolate`, `traverse` and `log_prob` run in eval mode and carry
    no gradient; for gradients go through `encode`, `decode` and `losses`. There is no `forward`.

    Attributes:
        config: the frozen config; with the registered name it is the header of a checkpoint.
        prior: p(z), or None until one is fitted (`vaezoo.fit_prior`).
        paper: where the model comes from.
        equation: what is minimised for an image x, in LaTeX, for the docs; a subclass has its parent's if it
            minimises the same.
        default_prior: the prior that `fit_prior` fits when none is named; None where the model has its
            prior from the start, from `make_prior`.
        recipes: options of `vaezoo.train` that go with this model, by the name of the data set ("*": any).
    """

    Config: ClassVar[type[AutoencoderConfig]] = AutoencoderConfig
    paper: ClassVar[str] = ""
    equation: ClassVar[str] = ""
    default_prior: ClassVar[str | None] = None
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "*": {"lr": 1e-3, "lr_schedule": "cosine", "batch_size": 128, "epochs": 20}
    }

    prior: Prior | None
    #: Whether `initialize` is done with; trained and loaded weights would be lost by another one.
    initialized: bool

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.prior = None
        self.initialized = False

    @classmethod
    def from_options(cls: type[A], options: Mapping[str, Any], where: str | None = None) -> A:
        """Make a model from config fields and the module arguments of `__init__` in one mapping."""
        where = where or cls.__name__
        arguments = [p for p in inspect.signature(cls.__init__).parameters if p not in ("self", "config")]
        for name in options:
            if name not in cls.Config.model_fields and name not in arguments:
                raise VaezooError(unknown(f"option of {where}", name, [*cls.Config.model_fields, *arguments]))
        modules = {name: value for name, value in options.items() if name in arguments}
        for name, module in modules.items():
            if not isinstance(module, nn.Module | None):
                raise VaezooError(f"{where}: {name}={module!r} is not valid: it must be a torch.nn.Module")
        config = cls.Config.parse({k: v for k, v in options.items() if k not in modules}, where)
        return cls(config, **modules)

    # --- What a model must say -----------------------------------------------------------------------

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) of images [B, C, H, W] in [0, 1]."""
        raise NotImplementedError

    def decode(self, z: Latent) -> Distribution:
        """p(x|z); its `log_prob(x)` is [B], in nats per image."""
        raise NotImplementedError

    def losses(self, x: Tensor, progress: Progress) -> dict[str, Loss]:
        """What each parameter group minimises on this batch. A group that is missing is not updated."""
        raise NotImplementedError

    @property
    def latent(self) -> LatentShape:
        """The space that a prior of this model is over."""
        raise NotImplementedError

    # --- What a model may change ---------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Disjoint and complete groups of the model's own parameters; a fitted prior's are not among them."""
        fitted = set(self.prior.parameters()) if self.prior is not None and self.prior.fitted else set()
        return {"model": [p for p in self.parameters() if p not in fitted]}

    def make_prior(self) -> Prior | None:
        """The model's own prior, or None where one has to be fitted after training. A subclass that has one
        sets `self.prior = self.make_prior()` when it is built."""
        return None

    def initialize(self, x: Tensor) -> None:
        """Data-dependent initialisation, called once with images [N, C, H, W] before the first step of new
        weights."""

    def latents(self, x: Tensor) -> Latent:
        """What a prior is fitted to, and what `decode` takes: a draw z ~ q(z|x), or the codes."""
        return self.encode(x).draw()

    # --- What follows --------------------------------------------------------------------------------

    def distortion(self, x: Tensor, z: Latent) -> Tensor:
        """-log p(x|z), [B] nats."""
        return -self.decode(z).log_prob(x)

    def rate(self, q: Posterior, z: Latent) -> Tensor:
        """KL(q(z|x) || p(z)), [B] nats: closed form where there is one, else its estimate at z ~ q."""
        return self.require_prior().kl(q, z)

    @inference
    def represent(self, x: Tensor) -> Latent:
        """The mean of q(z|x), which decodes: [B, D], code vectors [B, D, h, w], or a tuple of those."""
        return self.encode(x).mean

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|z) at z = `represent(x)`, [B, C, H, W]."""
        return self.decode(self.encode(x).mean).mean

    @inference
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        labels: Tensor | int | None = None,
        **options: Any,
    ) -> Tensor:
        """n images [n, C, H, W]: means of p(x|z) at z drawn from the model's own prior.

        Args:
            n: number of images.
            generator: on the model's device; None: torch's default one.
            labels: classes of the images, long [n] or one for all, for a prior that was fitted with classes.
            **options: of the prior's `sample`: `temperature`, and for priors over codes `guidance`, `top_k`,
                `top_p`, `progress`.

        Raises:
            NotFittedError: the model has no prior yet.
            VaezooError: an option or labels that its prior does not take.
        """
        prior = self.require_prior()
        if labels is not None:
            options["labels"] = labels
        check_options(prior.sample, options, f"option of sampling from {type(prior).__name__}")
        if isinstance(labels, Tensor) and labels.shape != (n,):
            raise VaezooError(f"labels must be {n} integers, not {labels.dtype} {list(labels.shape)}")
        images = []
        for start in range(0, max(n, 1), SAMPLED_IMAGES):  # once even for none, whose shape is [0, C, H, W]
            size = min(SAMPLED_IMAGES, n - start)
            if isinstance(labels, Tensor):
                options["labels"] = labels[start : start + size]
            images.append(self.decode(prior.sample(size, generator, **options)).mean)
        return torch.cat(images)

    @inference
    def interpolate(self, a: Tensor, b: Tensor, steps: int = 8, spherical: bool = False) -> Tensor:
        """Images on the way from a to b [B, C, H, W], ends included: [B, steps, C, H, W].

        Args:
            a: the images at the start, [B, C, H, W].
            b: the images at the end, [B, C, H, W].
            steps: images on each way, at least 2.
            spherical: along the great circle, with the norm interpolated, instead of the straight line
                (slerp, Shoemake 1985), which keeps to the shell where a Gaussian prior has its mass.
        """
        if steps < 2:
            raise VaezooError(f"interpolate: steps={steps} is not valid, a walk has at least its 2 ends")
        start, end = self.represent(a), self.represent(b)
        blend = _slerp if spherical else torch.lerp
        images = [
            self.decode(map_latent(lambda s, e, t=t: blend(s, e, t), start, end)).mean
            for t in _ticks(0.0, 1.0, steps)
        ]
        return torch.stack(images, 1)

    @inference
    def traverse(
        self, x: Tensor, dims: list[int] | None = None, span: float | Sequence[float] = 3.0, steps: int = 9
    ) -> Tensor:
        """Images as one latent dimension moves and the others stay: [B, len(dims), steps, C, H, W].

        z_d runs over represent(x)_d + [-span, span]. For code grids d is a channel of the coarsest level,
        moved at every position.

        Args:
            x: images, [B, C, H, W].
            dims: latent dimensions; all of them by default.
            span: half width of the range, one number or one for each entry of `dims`.
            steps: images along each dimension; an odd number has the reconstruction in the middle.
        """
        if steps < 2:
            raise VaezooError(f"traverse: steps={steps} is not valid, a walk has at least its 2 ends")
        z = self.represent(x)
        coarsest = z[0] if isinstance(z, tuple) else z
        size = coarsest.shape[1]
        dims = list(range(size)) if dims is None else dims
        for d in dims:
            if not 0 <= d < size:
                raise VaezooError(f"traverse: the latent has dimensions 0 to {size - 1}, not {d}")
        spans = list(span) if isinstance(span, Sequence) else [span] * len(dims)
        rows = []
        for d, half in zip(dims, spans, strict=True):
            direction = torch.zeros_like(coarsest)
            direction[:, d] = 1
            moved = [coarsest + t * direction for t in _ticks(-half, half, steps)]
            latents = [(m, *z[1:]) if isinstance(z, tuple) else m for m in moved]
            rows.append(torch.stack([self.decode(latent).mean for latent in latents], 1))
        return torch.stack(rows, 1)

    @inference
    def log_prob(self, x: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Importance-weighted lower bound on log p(x), [B] nats (Burda et al. 2016, eq. 8):

        log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x), z_i ~ q(z|x), k = `samples`. It rises to log p(x) with k.
        For a q over codes, whose mass is on one point, it is log p(x|z) + log p(z) at once.
        """
        total, count = x.new_full((len(x),), -math.inf), 0
        for log_weights in self._log_weights(x, samples, generator):
            total = torch.logaddexp(total, log_weights.logsumexp(0))
            count += len(log_weights)
        return total - math.log(count)

    def log_weights(self, x: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """log p(x|z) p(z) / q(z|x) at z ~ q(z|x), [samples, B] nats, with gradients through z.

        Only the weights are held for all samples, so without gradients memory is bounded by them. For a q
        over codes, whose mass is on one point, there is one row, log p(x|z) p(z).
        """
        return torch.cat(list(self._log_weights(x, samples, generator)))

    def _log_weights(
        self, x: Tensor, samples: int, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Rows of `log_weights`, some at a time."""
        prior = self.require_prior()
        if samples < 1:
            raise VaezooError(f"log_prob: samples={samples} is not valid, it must be at least 1")
        q = self.encode(x)
        if q.deterministic:
            z = q.draw()
            yield (-self.distortion(x, z) - prior.kl(q, z)).unsqueeze(0)
            return
        most = max(1, (DECODED_PIXELS_CPU if x.device.type == "cpu" else DECODED_PIXELS) // x[0].numel())
        drawn = max(1, DRAWN_NUMBERS // (len(x) * sum(map(math.prod, self.latent.shapes))))
        for start in range(0, samples, drawn):
            k = min(drawn, samples - start)
            z = q.rsample((k,), generator)
            flat = map_latent(lambda level: level.flatten(0, 1), z)
            log_prior = torch.cat([prior.log_prob(part) for part in _tiles(flat, SCORED_LATENTS)])
            # Tiles of draws by images, no more than `most`; draws first, since one image needs no copies.
            rows = math.ceil(k / math.ceil(k / most))
            columns = max(1, most // rows)
            distortion = [
                torch.cat([self._distortions(images, tile) for tile in _tiles(part, rows)])
                for images, part in zip(x.split(columns), _tiles(z, columns, dim=1))
            ]
            yield log_prior.view(k, len(x)) - torch.cat(distortion, 1) - q.log_prob(z)

    def _distortions(self, x: Tensor, z: Latent) -> Tensor:
        """-log p(x|z), [k, B] nats, of images x [B, C, H, W] at k latents each, z [k, B, ...]."""
        flat = map_latent(lambda level: level.flatten(0, 1), z)
        n = len(flat[0] if isinstance(flat, tuple) else flat)
        images = x.expand(n // len(x), *x.shape).flatten(0, 1)
        return self.distortion(images, flat).view(-1, len(x))

    def require_prior(self) -> Prior:
        """The prior, or an error that says how to fit one."""
        if self.prior is None:
            raise NotFittedError(
                f"{type(self).__name__} has no prior yet, so it cannot sample or score images: fit one with "
                f"vaezoo.fit_prior(model, data) (default: {self.default_prior}), or `vaezoo fit-prior RUN`"
            )
        return self.prior


def _tiles(z: Latent, size: int, dim: int = 0) -> Sequence[Latent]:
    """Parts of a latent along a dimension, of at most `size`."""
    if isinstance(z, tuple):
        return list(zip(*(level.split(size, dim) for level in z)))
    return z.split(size, dim)


def _ticks(start: float, end: float, steps: int) -> list[float]:
    """Evenly spaced numbers, ends included, without a tensor that would have to be read back."""
    return [start + (end - start) * i / (steps - 1) for i in range(steps)]


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Along the great circle between the directions of a and b [B, ...], the norm interpolated linearly."""
    a_flat, b_flat = a.flatten(1), b.flatten(1)
    norm_a, norm_b = a_flat.norm(dim=1, keepdim=True), b_flat.norm(dim=1, keepdim=True)
    unit_a, unit_b = a_flat / norm_a.clamp_min(1e-12), b_flat / norm_b.clamp_min(1e-12)
    cosine = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / sine.clamp_min(1e-6)
    # Parallel directions have no great circle between them, nor opposite ones a unique one: go straight.
    straight = torch.lerp(a_flat, b_flat, t)
    curved = direction * torch.lerp(norm_a, norm_b, t)
    return torch.where(sine < 1e-4, straight, curved).view_as(a)
