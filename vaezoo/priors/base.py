"""The contract of a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vaezoo.config import BaseConfig
from vaezoo.distributions import Latent, Posterior
from vaezoo.errors import VaezooError
from vaezoo.objective import Loss, Progress


@dataclass(frozen=True)
class LatentShape:
    """The space that a prior is a distribution over.

    Attributes:
        shapes: one shape per level without the batch, coarsest first: ((20,),) or ((7, 7), (14, 14)).
        codes: number of codes that each position chooses from; None for real vectors.
    """

    shapes: tuple[tuple[int, ...], ...]
    codes: int | None = None

    @property
    def is_vector(self) -> bool:
        """The latent is one vector of real numbers."""
        return self.codes is None and [len(shape) for shape in self.shapes] == [1]

    def vector_dim(self, prior: str) -> int:
        """D, where the latent is one real vector [D]; refused with the name of the prior where it is not."""
        if not self.is_vector:
            raise VaezooError(f"{prior} is a prior over one real vector, but this model's latent is a {self}")
        return self.shapes[0][0]

    def __str__(self) -> str:
        grids = " + ".join("x".join(map(str, shape)) for shape in self.shapes)
        return f"{grids} grid of {self.codes} codes" if self.codes else f"{grids} real numbers"


class Labelled(NamedTuple):
    """Latents with the classes of their images: a batch for a prior that is conditioned on classes.

    Attributes:
        z: latents of B images.
        labels: long [B].
    """

    z: Latent
    labels: Tensor


def check_temperature(temperature: float) -> None:
    """Refuse what does not scale noise."""
    if not 0 < temperature < math.inf:
        raise VaezooError(f"sample: temperature={temperature} is not valid, it must be above 0 and finite")


def mean_and_scale(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each dimension of latents [N, D], with 1 for a deviation of 0."""
    deviation = z.std(0, correction=0)
    return z.mean(0), torch.where(deviation > 0, deviation, 1.0)


class Prior(nn.Module):
    """p(z). A prior without parameters is fitted in closed form by `fit`; one with parameters is trained on
    the latents of the data by the same trainer as the models, through `losses` and `parameter_groups`."""

    Config: ClassVar[type[BaseConfig]] = BaseConfig
    paper: ClassVar[str] = ""

    #: Options of `vaezoo.fit_prior` that go with this prior, by the name of the data set ("*": any).
    recipes: ClassVar[dict[str, dict[str, Any]]] = {}

    #: Fitted to the latents of a trained model (`vaezoo.fit_prior`), rather than trained with the model.
    fitted: bool = False

    #: Takes the classes of images: `losses` a `Labelled` batch, `sample` an argument `labels`.
    conditional: bool = False

    def __init__(self, config: Any, latent: LatentShape) -> None:
        super().__init__()
        self.config = config
        self.latent = latent

    def log_prob(self, z: Latent) -> Tensor:
        """log p(z), [B] nats. z as `sample` returns it."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Latent:
        """n draws, [n, ...] on the prior's device; a tuple, coarsest first, where there are several levels.

        The same for the same generator, in train mode too.

        Args:
            n: number of draws.
            generator: on the prior's device; None: torch's default one.
            temperature: below 1 the draws are more typical and less diverse. For priors over vectors it is
                the factor of the standard deviation of the Gaussian noise that they are made from; for
                priors over codes, the divisor of the logits.
        """
        raise NotImplementedError

    def fit(self, z: Tensor, seed: int = 0) -> None:
        """Estimate the prior from all latents of the data [N, D], where no gradient is needed."""
        raise VaezooError(f"{type(self).__name__} has nothing to fit")

    def initialize(self, z: Latent) -> None:
        """Data-dependent initialisation, called once with the training latents before the first step."""

    def kl(self, q: Posterior, z: Latent) -> Tensor:
        """KL(q || p) of each image, [B] nats: the one-sample estimate log q(z) - log p(z) at z ~ q, exact for
        a q over codes that has all its mass at z. Subclasses use a closed form where there is one."""
        return q.log_prob(z) - self.log_prob(z)

    def losses(self, z: Latent, progress: Progress) -> dict[str, Loss]:
        """Negative log-likelihood of the latents, nats per image."""
        nll = -self.log_prob(z).mean()
        return {"prior": Loss(nll, {"prior_nll": nll})}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"prior": list(self.parameters())}
