"""What the priors over code grids share: classes, exact draws one position after the other, completion."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from vaezoo.config import BaseConfig
from vaezoo.distributed import per_image
from vaezoo.distributions import Latent
from vaezoo.errors import VaezooError
from vaezoo.inference import inference
from vaezoo.objective import Loss, Progress
from vaezoo.priors.base import Labelled, LatentShape, Prior, check_temperature

Codes = tuple[Tensor, ...]


class CodePrior(Prior):
    """p(codes | class) = prod_t p(code_t | all earlier codes, class), in raster order, coarsest level first.

    A subclass gives `logits`, from which it is trained, scored and sampled. With `begin` and `step`, which
    reuse the activations of earlier positions, it gives the same samples at a fraction of the cost.

    With `classes`, a share of the images is trained without its class, so that one network is both
    p(codes | class) and p(codes), which is what `log_prob` and `sample` are without labels, and what
    guidance needs (Ho & Salimans, Classifier-Free Diffusion Guidance, 2022).
    """

    recipes = {
        "*": {
            "lr": 1e-3,
            "lr_schedule": "cosine",
            "lr_warmup_steps": 100,
            "clip": 1.0,
            "batch_size": 128,
            "epochs": 10,
        }
    }

    class Config(BaseConfig):
        classes: int = Field(0, ge=0, description="classes of images that it can be conditioned on; 0: none")
        label_dropout: float = Field(
            0.1, gt=0, lt=1, description="share of the images whose class it does not see while training"
        )

    config: Config

    def __init__(self, config: Config, latent: LatentShape) -> None:
        super().__init__(config, latent)
        if latent.codes is None:
            raise VaezooError(
                f"{type(self).__name__} is a prior over code grids, but this model's latent is {latent}"
            )
        self.codes = latent.codes
        self.conditional = config.classes > 0

    # --- What a subclass must say, and what it may -----------------------------------------------------

    def logits(self, codes: Codes, labels: Tensor) -> list[Tensor]:
        """Logits of each code given all earlier ones: [B, h * w, K] for each level.

        Args:
            codes: integers [B, h, w] of each level, coarsest first.
            labels: long [B]; `config.classes` stands for none.
        """
        raise NotImplementedError

    def begin(self, level: int, codes: Codes, labels: Tensor) -> Any:
        """What `step` needs besides the codes, made once the coarser levels are drawn: empty caches."""
        return labels

    def begin_row(self, level: int, cache: Any, codes: Codes, row: Tensor) -> None:
        """Put into the cache what can be computed for the row `row` [1] before it is drawn."""

    def step(self, level: int, cache: Any, codes: Codes, position: Tensor) -> Tensor:
        """Logits [B, K] at a position, long [1], of a level. Codes of later positions have no meaning yet.

        Shapes are the same at every position of a level and nothing is read back, so that a step can be
        compiled, `prior.step = torch.compile(prior.step)`, or captured in a graph for the cache of one
        `begin`. To run it twice at a position, as before a capture, changes nothing. This one computes all
        positions anew.
        """
        return self.logits(codes, cache)[level].index_select(1, position).squeeze(1)

    # --- What follows --------------------------------------------------------------------------------

    def log_prob(self, z: Latent, labels: Tensor | int | None = None) -> Tensor:
        """log p(codes | labels), [B] nats; labels long [B], or one for all; None: log p(codes).

        z: integers [B, h, w], or a tuple of them, coarsest first.
        """
        codes = z if isinstance(z, tuple) else (z,)
        levels = self.logits(codes, self.check_labels(labels, len(codes[0]), codes[0].device))
        nll = [
            # One row for each position: over another axis it takes three times as long.
            F.cross_entropy(_single(logits).flatten(0, 1), level.flatten().long(), reduction="none")
            .view_as(level)
            .sum((1, 2))
            for logits, level in zip(levels, codes, strict=True)
        ]
        return -torch.stack(nll).sum(0)

    def losses(self, z: Latent | Labelled, progress: Progress) -> dict[str, Loss]:
        """Negative log-likelihood of the codes, nats per image, given the classes where z is `Labelled`."""
        labels = None
        if isinstance(z, Labelled):
            z, labels = z
            if self.training:
                hidden = per_image(torch.rand, labels.shape, labels.device) < self.config.label_dropout
                labels = labels.masked_fill(hidden, self.config.classes)
        nll = -self.log_prob(z, labels).mean()
        return {"prior": Loss(nll, {"prior_nll": nll})}

    @inference
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        *,
        labels: Tensor | int | None = None,
        guidance: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        progress: bool = False,
    ) -> Latent:
        """n draws of codes, [n, h, w]; a tuple of those, coarsest first, where there are several levels.

        Args:
            n: number of draws.
            generator: on the prior's device; None: torch's default one.
            temperature: divides the logits; below 1 the draws are more typical and less diverse.
            labels: classes, long [n] or one for all; None: of any class.
            guidance: logits are free + guidance * (given the class - free); above 1 the draws are more
                typical of their class, at twice the cost.
            top_k: draw among the k most probable codes only.
            top_p: draw among the fewest codes that together have at least this probability (Holtzman et
                al. 2020).
            progress: show a progress bar over the positions.
        """
        device = next(self.parameters()).device
        codes = tuple(torch.zeros(n, *shape, dtype=torch.long, device=device) for shape in self.latent.shapes)
        how = _Sampling(temperature, guidance, top_k, top_p)
        labels = self.check_labels(labels, n, device, guidance)
        drawn, _ = self._draw(codes, None, generator, labels, how, progress)
        return drawn if len(drawn) > 1 else drawn[0]

    @inference
    def complete(
        self,
        z: Latent,
        known: Latent,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        *,
        candidates: int = 1,
        labels: Tensor | int | None = None,
        guidance: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        progress: bool = False,
    ) -> Latent:
        """Codes that are z where `known` and drawn elsewhere, in the form of z.

        Each code is drawn given those before it, so what is known after a gap is not seen while the gap is
        filled. Where the gap is at the end (the lower part of an image), the draws are exact. Otherwise each
        of `candidates` fillings gets the probability of the known codes after it as its weight, and one is
        chosen by weight (sampling importance resampling, Rubin 1988); as their number rises, the draws tend
        to p(unknown | known), if they are neither tempered nor truncated nor guided.

        Args:
            z: integers [B, h, w], or a tuple of them, coarsest first.
            known: bool, of the shapes of z, or with B = 1 for all.
            generator, temperature, labels, guidance, top_k, top_p, progress: as in `sample`.
            candidates: fillings drawn for each image.
        """
        if candidates < 1:
            raise VaezooError(f"complete: candidates={candidates} is not valid, it must be at least 1")
        levels = z if isinstance(z, tuple) else (z,)
        masks = known if isinstance(known, tuple) else (known,)
        shapes = [tuple(t.shape[1:]) for t in (*levels, *masks)]
        if shapes != 2 * [tuple(shape) for shape in self.latent.shapes]:
            raise VaezooError(f"complete: z and known must be a {self.latent} each, not {shapes}")
        batch, device = len(levels[0]), levels[0].device
        for mask in masks:
            if mask.dtype != torch.bool or len(mask) not in (1, batch):
                raise VaezooError(
                    f"complete: known must be bool, for 1 or {batch} images, not {mask.dtype} for {len(mask)}"
                )
        codes = tuple(level.long().repeat_interleave(candidates, 0) for level in levels)
        masks = tuple(mask.expand(batch, -1, -1).repeat_interleave(candidates, 0) for mask in masks)
        labels = self.check_labels(labels, batch, device, guidance).repeat_interleave(candidates)
        how = _Sampling(temperature, guidance, top_k, top_p)
        drawn, log_weights = self._draw(codes, masks, generator, labels, how, progress)
        uniform = torch.rand(batch, device=device, generator=generator)
        chosen = draw_code(log_weights.view(batch, candidates), uniform)
        rows = chosen + candidates * torch.arange(batch, device=device)
        drawn = tuple(level[rows] for level in drawn)
        return drawn if isinstance(z, tuple) else drawn[0]

    def _draw(
        self,
        codes: Codes,
        known: Codes | None,
        generator: torch.Generator | None,
        labels: Tensor,
        how: _Sampling,
        progress: bool,
    ) -> tuple[Codes, Tensor]:
        """The codes, drawn where not `known`; log p of the known ones, each given those before it, [n]."""
        n, device = len(labels), labels.device
        guided = how.guidance != 1
        if guided:  # the second half of the batch does not see the class
            labels = torch.cat([labels, torch.full_like(labels, self.config.classes)])
            codes = tuple(torch.cat([level, level]) for level in codes)
        # All at once, so that a step is a function of tensors alone and can be captured.
        lengths = [math.prod(shape) for shape in self.latent.shapes]
        uniform = torch.rand(sum(lengths), n, device=device, generator=generator).split(lengths)
        log_known = torch.zeros(n, device=device)
        with tqdm(total=sum(lengths), desc="codes", unit="position", disable=not progress) as bar:
            for level, (height, width) in enumerate(self.latent.shapes):
                cache = self.begin(level, codes, labels)
                flat = codes[level].view(len(labels), height * width)
                given = known[level].flatten(1) if known is not None else None
                positions = torch.arange(height * width, device=device)
                for row in range(height):
                    self.begin_row(level, cache, codes, positions[row : row + 1])
                    for t in range(row * width, (row + 1) * width):
                        logits = _single(self.step(level, cache, codes, positions[t : t + 1]))
                        drawn = draw_code(how.adjust(logits), uniform[level][t])
                        if given is not None:
                            fixed, current = given[:, t], flat[:n, t]
                            log_prob = logits[:n].log_softmax(-1).gather(1, current[:, None]).squeeze(1)
                            log_known += torch.where(fixed, log_prob, 0.0)
                            drawn = torch.where(fixed, current, drawn)
                        flat[:, t] = torch.cat([drawn, drawn]) if guided else drawn
                        bar.update()
        return tuple(level[:n] for level in codes), log_known

    def check_labels(
        self, labels: Tensor | int | None, n: int, device: torch.device, guidance: float = 1.0
    ) -> Tensor:
        """Labels as long [n], where `config.classes` stands for none."""
        classes = self.config.classes
        if (labels is not None or guidance != 1) and not self.conditional:
            raise VaezooError(
                "this prior was fitted without classes, so it takes no labels and no guidance: "
                "fit_prior(..., classes=10)"
            )
        if labels is None:
            if guidance != 1:
                raise VaezooError(f"guidance={guidance} is towards a class, so it needs labels")
            return torch.full((n,), classes, device=device)
        if isinstance(labels, int):
            if not 0 <= labels < classes:
                raise VaezooError(f"label {labels} is not one of the {classes} classes, 0 to {classes - 1}")
            return torch.full((n,), labels, device=device)
        if not isinstance(labels, Tensor):
            raise VaezooError(f"labels must be one integer or a tensor of {n}, not a {type(labels).__name__}")
        if labels.shape != (n,) or labels.is_floating_point():
            raise VaezooError(f"labels must be {n} integers, not {labels.dtype} {list(labels.shape)}")
        if not self.training and labels.device.type == "cpu" and n:  # where reading a value is not waiting
            for label in (int(labels.min()), int(labels.max())):
                if not 0 <= label <= classes:
                    raise VaezooError(f"label {label} is not one of the {classes} classes")
        return labels.to(device).long()


class _Sampling:
    """How logits become the distribution that is drawn from."""

    def __init__(self, temperature: float, guidance: float, top_k: int | None, top_p: float) -> None:
        check_temperature(temperature)
        if top_k is not None and top_k < 1:
            raise VaezooError(f"sample: top_k={top_k} is not valid, it must be at least 1")
        if not 0 < top_p <= 1:
            raise VaezooError(f"sample: top_p={top_p} is not valid, it must be above 0 and at most 1")
        if not math.isfinite(guidance):
            raise VaezooError(f"sample: guidance={guidance} is not valid, it must be finite")
        self.temperature, self.guidance, self.top_k, self.top_p = temperature, guidance, top_k, top_p

    def adjust(self, logits: Tensor) -> Tensor:
        """[n, K] -> [n, K]; [2n, K] -> [n, K] with guidance, the second half being of no class."""
        if self.guidance != 1:
            given, free = logits.chunk(2)
            logits = torch.lerp(free, given, self.guidance)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            kept = logits.topk(self.top_k)  # by index: no more than k where some are equally probable
            logits = torch.full_like(logits, -math.inf).scatter(1, kept.indices, kept.values)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            p = ordered.softmax(-1)
            # By the mass before a code: the one that crosses the threshold stays, and always the first.
            surplus = p.cumsum(-1) - p >= self.top_p
            surplus[:, 0] = False  # also where top_p rounds to 0
            logits = ordered.masked_fill(surplus, -math.inf).gather(1, order.argsort(1))
        return logits


def draw_code(logits: Tensor, uniform: Tensor) -> Tensor:
    """The code [n] at which the cumulative distribution of logits [n, K] passes uniform [n] in [0, 1)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    # Against the sum as rounded, so that the last code of positive probability takes what rounding leaves.
    passed = cumulative <= uniform[:, None] * cumulative[:, -1:]
    return passed.sum(-1).clamp_max(logits.shape[1] - 1)


def _single(logits: Tensor) -> Tensor:
    """At least single precision: under autocast, or of a prior in half precision."""
    return logits.float() if logits.dtype.itemsize == 2 else logits
