"""p(x|z) over images: the map from a decoder's output to a normalised distribution, by name.

Each likelihood says how many parameters it needs for each channel and turns them into a distribution
whose `log_prob` is summed over the image, in nats. Constants are included, so that losses of different
models compare and beta weighs the same thing everywhere.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.distributions import Laplace as TorchLaplace

from vaezoo.distributions import Bernoulli as BernoulliDistribution
from vaezoo.distributions import ContinuousBernoulli as ContinuousBernoulliDistribution
from vaezoo.distributions import DiscretizedLogisticMixture
from vaezoo.registry import Registry

#: Scales that a decoder gives are kept within exp(±7), so that constant pixels stay finite.
LOG_SCALE_RANGE = (-7.0, 7.0)


class Likelihood(nn.Module):
    """Decoder output [B, parameters * C, H, W] -> distribution over images [B, C, H, W].

    Args:
        scale: standard deviation (Gaussian) or scale (Laplace) in units of the image range, where it is
            fixed; the starting point, where it is learned.

    Attributes:
        parameters_per_channel: what the decoder must output for each image channel.
    """

    parameters_per_channel: ClassVar[int] = 1

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()

    def pixels(self, parameters: Tensor) -> Distribution:
        """One distribution per pixel, with batch shape [B, C, H, W]."""
        raise NotImplementedError

    def forward(self, parameters: Tensor) -> Distribution:
        # Under autocast the decoder's output is bfloat16; log-likelihoods are sums of thousands of terms.
        return Independent(
            self.pixels(parameters.float() if parameters.dtype != torch.float64 else parameters),
            3,
            validate_args=False,
        )


class Bernoulli(Likelihood):
    """Bernoulli on logits: exact for binary images, cross-entropy for grey levels."""

    def pixels(self, parameters: Tensor) -> Distribution:
        return BernoulliDistribution(logits=parameters, validate_args=False)


class ContinuousBernoulli(Likelihood):
    """Continuous Bernoulli: the Bernoulli form, normalised over [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    def pixels(self, parameters: Tensor) -> Distribution:
        return ContinuousBernoulliDistribution(parameters)


class Gaussian(Likelihood):
    """Gaussian with one fixed standard deviation."""

    log_scale: Tensor

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("log_scale", torch.tensor(math.log(scale)))

    def pixels(self, parameters: Tensor) -> Distribution:
        return Normal(parameters, self.log_scale.exp().expand_as(parameters), validate_args=False)


class GaussianLearned(Likelihood):
    """Gaussian with one learned standard deviation for all pixels (sigma-VAE, Rybkin et al. 2021)."""

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def pixels(self, parameters: Tensor) -> Distribution:
        # A floor far below one grey level, so that constant pixels do not end in a division by zero.
        scale = self.log_scale.exp() + math.exp(LOG_SCALE_RANGE[0])
        return Normal(parameters, scale.expand_as(parameters), validate_args=False)


class GaussianPixelwise(Likelihood):
    """Gaussian whose mean and standard deviation the decoder gives for each pixel."""

    parameters_per_channel = 2

    def pixels(self, parameters: Tensor) -> Distribution:
        mean, log_scale = parameters.chunk(2, dim=1)
        return Normal(mean, log_scale.clamp(*LOG_SCALE_RANGE).exp(), validate_args=False)


class Laplace(Gaussian):
    """Laplace with one fixed scale: the absolute error, normalised."""

    def pixels(self, parameters: Tensor) -> Distribution:
        return TorchLaplace(parameters, self.log_scale.exp().expand_as(parameters), validate_args=False)


class LogisticMixture(Likelihood):
    """Mixture of five discretised logistics over 256 grey levels, per channel (Salimans et al. 2017)."""

    components: ClassVar[int] = 5
    parameters_per_channel = 3 * components

    def pixels(self, parameters: Tensor) -> Distribution:
        logits, loc, log_scale = rearrange(parameters, "b (k m c) h w -> k b m c h w", k=3, m=self.components)
        # A decoder at its start outputs zeros; the components must not start as copies of one another.
        start = torch.linspace(0, 1, self.components + 2, device=loc.device, dtype=loc.dtype)[1:-1]
        loc = loc + start.view(-1, 1, 1, 1)
        return DiscretizedLogisticMixture(logits, loc, (log_scale - 2).clamp(*LOG_SCALE_RANGE))


LIKELIHOODS: Registry[type[Likelihood]] = Registry(
    "likelihood",
    {
        "bernoulli": "vaezoo.likelihoods:Bernoulli",
        "continuous_bernoulli": "vaezoo.likelihoods:ContinuousBernoulli",
        "gaussian": "vaezoo.likelihoods:Gaussian",
        "gaussian_learned": "vaezoo.likelihoods:GaussianLearned",
        "gaussian_pixelwise": "vaezoo.likelihoods:GaussianPixelwise",
        "laplace": "vaezoo.likelihoods:Laplace",
        "logistic_mixture": "vaezoo.likelihoods:LogisticMixture",
    },
)
