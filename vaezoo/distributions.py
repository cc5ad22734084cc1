"""The distributions that the zoo speaks in, beside those of `torch.distributions`.

`encode` returns one of `Delta`, `DiagonalGaussian`, `Quantized` or a `Joint` of several;
`decode` returns an image distribution, whose `log_prob` is summed over the image, in nats.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

LOG_2PI = math.log(2 * math.pi)

#: A point of the latent space: a tensor [B, ...], or one tensor per level of a hierarchy, coarsest first.
Latent = Tensor | tuple[Tensor, ...]


class Posterior(Distribution):
    """q(z|x). `deterministic` says that all its mass lies on one point, so that one sample tells all."""

    arg_constraints: dict[str, Any] = {}
    deterministic = False

    def rsample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Any:
        """z with gradients, [*sample_shape, B, ...]; a tuple of those for hierarchies."""
        raise NotImplementedError

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Any:
        """z without gradients, [*sample_shape, B, ...]; a tuple of those for hierarchies."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def log_prob(self, value: Any) -> Tensor:
        """log q(z|x), [*, B] nats, of z in the form that `draw` gives."""
        raise NotImplementedError

    def draw(self, generator: torch.Generator | None = None) -> Any:
        """A sample in the form that a prior is over: z itself, or the codes of a quantised z."""
        return self.sample(generator=generator)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has the batch shape of its images")


class Delta(Posterior):
    """All mass on one point: the posterior of a deterministic autoencoder.

    Args:
        value: [B, D].
    """

    deterministic = True
    has_rsample = True

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape[:1], value.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.value)

    def rsample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Infinite at the point and minus infinity elsewhere, [*, B]: a point mass has no density."""
        at_point = (value == self.value).flatten(-len(self.event_shape)).all(-1)
        return torch.where(at_point, math.inf, -math.inf)


class DiagonalGaussian(Posterior):
    """N(mean, diag exp(log_variance)) over vectors.

    Args:
        mean: [B, D].
        log_variance: [B, D], in log units squared; the parameterisation that encoders output.
    """

    has_rsample = True

    def __init__(self, mean: Tensor, log_variance: Tensor) -> None:
        self.loc = mean
        self.log_variance = log_variance
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.log_variance.exp()

    def rsample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """z = mean + sigma * eps, eps ~ N(0, I) (Kingma & Welling 2014, eq. 10)."""
        shape = (*sample_shape, *self.loc.shape)
        # torch.randn takes no generator, not even None, when it is compiled for batches of any size.
        noise = self.loc.new_empty(shape).normal_(generator=generator)
        return torch.addcmul(self.loc, torch.exp(0.5 * self.log_variance), noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """log N(value; mean, variance), summed over D: [*, B] nats."""
        squares = (value - self.loc).square() * torch.exp(-self.log_variance)
        return -0.5 * (squares + self.log_variance + LOG_2PI).sum(-1)

    def entropy(self) -> Tensor:
        return 0.5 * (self.log_variance + LOG_2PI + 1).sum(-1)

    def kl_per_dimension(self) -> Tensor:
        """KL(q || N(0, I)) of each dimension, [B, D] nats (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.loc.square() + self.log_variance.exp() - 1 - self.log_variance)


def log_density_of_each(q: DiagonalGaussian, z: Tensor) -> Tensor:
    """log q_k(z_i) of K posteriors at z [M, D]: [M, K] nats, without a tensor of M K D numbers.

    The squares are multiplied out, sum_d (z - m)^2 / v = z^2 . 1/v - 2 z . m/v + m^2 . 1/v, so that they are
    two matrix products. Their terms are up to a hundred thousand times as large as the result, so they are
    in float64, where the result is as exact as that of `DiagonalGaussian.log_prob` in float32.
    """
    mean, log_variance, points = q.loc.double(), q.log_variance.double(), z.double()
    precision = torch.exp(-log_variance)
    constant = (mean.square() * precision + log_variance + LOG_2PI).sum(1)
    squares = torch.addmm(constant, points.square(), precision.T)
    return (-0.5 * torch.addmm(squares, points, (mean * precision).T, alpha=-2)).to(z.dtype)


def log_aggregate(q: DiagonalGaussian, z: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log q(z), [M] nats, and log q(z_d), [M, D] nats, of weighted sums of posteriors, at z [M, D].

    q(z_i) is sum_j w_ij q_j(z_i): a weight belongs to an image, so it enters once in the joint density, and
    once in that of each dimension. Holds M N D densities.

    Args:
        q: N posteriors.
        z: points.
        log_weights: log w, [M, N] or of a shape that expands to it.
    """
    # A Gaussian in one dimension for every image and latent dimension, [N, D, 1], evaluated at all z.
    single = DiagonalGaussian(q.loc.unsqueeze(-1), q.log_variance.unsqueeze(-1))
    log_density = single.log_prob(z[:, None, :, None])  # [i, j, d]: log q_j(z_i) in dimension d
    joint = torch.logsumexp(log_density.sum(2) + log_weights, 1)
    marginals = torch.logsumexp(log_density + log_weights.unsqueeze(2), 1)
    return joint, marginals


class Quantized(Posterior):
    """All mass on one entry of a codebook at each position (van den Oord et al. 2017, eq. 1 and 2).

    A sample is the tensor of codebook vectors, exactly, with the straight-through gradient to the encoder;
    probabilities are over the codes, so `log_prob` is 0 at the chosen codes and minus infinity elsewhere.

    Args:
        encoded: z_e, the encoder's output, [B, D, *grid].
        codes: index of the nearest codebook vector, integer [B, *grid].
        vectors: the codebook vectors of the codes, [B, D, *grid]; attached to the codebook's gradient.
    """

    deterministic = True
    has_rsample = True

    def __init__(self, encoded: Tensor, codes: Tensor, vectors: Tensor) -> None:
        self.encoded = encoded
        self.codes = codes
        self.vectors = vectors
        super().__init__(encoded.shape[:1], encoded.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.vectors

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.vectors)

    @property
    def factors(self) -> tuple[Quantized, ...]:
        """This one level, in the form in which a `Joint` lists its several."""
        return (self,)

    def rsample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        # z_e - sg(z_e) is exactly zero, so the decoder reads the codebook vectors to the last bit,
        # which z_e + sg(e - z_e), the usual form, does not give; the gradient is the same.
        straight_through = self.vectors.detach() + (self.encoded - self.encoded.detach())
        return straight_through.expand(*sample_shape, *straight_through.shape)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        return self.codes

    def log_prob(self, value: Tensor) -> Tensor:
        """0 where the codes `value` [B, *grid] are the chosen ones, else minus infinity: [B] nats."""
        chosen = (value == self.codes).flatten(1).all(1)
        return torch.where(chosen, 0.0, -math.inf)


class Joint(Posterior):
    """Several latents of one image, coarsest first; a sample is the tuple of their samples."""

    has_rsample = True

    def __init__(self, factors: tuple[Any, ...]) -> None:
        self.factors = factors
        self.deterministic = all(factor.deterministic for factor in factors)
        super().__init__(factors[0].batch_shape, validate_args=False)

    @property
    def mean(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(factor.mean for factor in self.factors)

    def rsample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Any:
        return tuple(factor.rsample(sample_shape, generator) for factor in self.factors)

    def draw(self, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        return tuple(factor.draw(generator) for factor in self.factors)

    def log_prob(self, value: Any) -> Tensor:
        return torch.stack([q.log_prob(v) for q, v in zip(self.factors, value, strict=True)]).sum(0)


def code_type(size: int) -> torch.dtype:
    """The smallest integers that codes 0 to `size` - 1 fit into."""
    return next(t for t in (torch.uint8, torch.int16, torch.int32) if size - 1 <= torch.iinfo(t).max)


def code_counts(codes: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs, float64 [size]. codes: integers of any shape."""
    ones = torch.ones(codes.numel(), dtype=torch.float64, device=codes.device)
    return ones.new_zeros(size).index_add_(0, codes.flatten().long(), ones)


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of code counts [K]: K when all are used alike, 1 when one is. Scalar."""
    p = counts / counts.sum()
    return torch.exp(-torch.xlogy(p, p).sum())


@register_kl(DiagonalGaussian, DiagonalGaussian)
def _kl_diagonal_gaussians(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    log_ratio = p.log_variance - q.log_variance
    squares = (q.loc - p.loc).square() * torch.exp(-p.log_variance)
    return 0.5 * (log_ratio + torch.exp(-log_ratio) + squares - 1).sum(-1)


class _GreyLevels(constraints.Constraint):
    """The 256 grey levels k / 255. Discrete: `log_prob` is that of a probability, not of a density."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0) & (value <= 1)


grey_levels = _GreyLevels()


class DiscretizedLogisticMixture(Distribution):
    """A mixture of logistics over [0, 1], discretised to 256 grey levels (Salimans et al. 2017, eq. 2).

    Level k has the probability of [(k - 1/2)/255, (k + 1/2)/255]; levels 0 and 255 take the tails, so the
    256 probabilities sum to one. Each channel has its own mixture.

    Args:
        logits: mixture logits, [B, M, C, H, W].
        loc: means in units of the image range, [B, M, C, H, W].
        log_scale: log scales in the same units, [B, M, C, H, W].
    """

    arg_constraints: dict[str, Any] = {}
    support = grey_levels

    def __init__(self, logits: Tensor, loc: Tensor, log_scale: Tensor) -> None:
        self.log_weights = F.log_softmax(logits, dim=1)
        self.loc = loc
        self.log_scale = log_scale
        super().__init__(loc.shape[:1] + loc.shape[2:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of the logistics clamped to [0, 1], within half a grey level of the discretised mean.

        E[clamp(L, 0, 1)] is the integral of P(L > t) over [0, 1] = s (softplus(m/s) - softplus((m-1)/s)).
        """
        scale = self.log_scale.exp()
        mean = scale * (F.softplus(self.loc / scale) - F.softplus((self.loc - 1) / scale))
        return (self.log_weights.exp() * mean).sum(1).clamp(0, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P of the grey level nearest to `value` in [0, 1]: [B, C, H, W] nats."""
        x = torch.round(value * 255).unsqueeze(1) / 255
        inverse_scale = torch.exp(-self.log_scale)
        upper = (x - self.loc + 0.5 / 255) * inverse_scale
        lower = (x - self.loc - 0.5 / 255) * inverse_scale
        # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), exact in
        # the far tails, where the plain difference underflows. u - l = 1/(255 s) > 0.
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + _log1mexp(inverse_scale / 255)
        log_mass = torch.where(
            x < 0.5 / 255, F.logsigmoid(upper), torch.where(x > 1 - 0.5 / 255, F.logsigmoid(-lower), inside)
        )
        return torch.logsumexp(self.log_weights + log_mass, dim=1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Grey levels in [0, 1], [B, C, H, W], drawn with torch's default generator."""
        if tuple(sample_shape):
            raise NotImplementedError("one image per latent: sample_shape must be empty")
        # Gumbel-max over components, then the inverse CDF of the logistic.
        tiny = torch.finfo(self.loc.dtype).tiny
        gumbel = -torch.log(-torch.log(torch.rand_like(self.loc).clamp_min(tiny)))
        component = (self.log_weights + gumbel).argmax(1, keepdim=True)
        u = torch.rand_like(self.loc[:, 0]).clamp(1e-6, 1 - 1e-6)
        loc, scale = self.loc.gather(1, component)[:, 0], self.log_scale.gather(1, component)[:, 0].exp()
        return torch.round((loc + scale * torch.logit(u)).clamp(0, 1) * 255) / 255


class _BernoulliLogProb(torch.autograd.Function):
    """x l - softplus(l) as log sigmoid(|l|) - (relu(l) - x l), which rounds nothing away where x is 0 or 1.

    log1p, which softplus and the cross-entropy are made of, takes up to ten times as long as exp on some
    processors, more than the matrix products of a small decoder; this takes it from the logarithm of a number
    in [1/2, 1], within 6e-8 of a nat in float32. Written by hand because relu and abs, differentiated one by
    one, give 0 instead of 1/2 at l = 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> Tensor:
        linear = torch.addcmul(logits.relu(), logits, x, value=-1)
        return logits.abs().sigmoid_().log_() - linear

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, x = ctx.saved_tensors
        to_x = gradient * logits if ctx.needs_input_grad[1] else None
        return gradient * (x - logits.sigmoid()), to_x


class Bernoulli(TorchBernoulli):
    """torch's Bernoulli by its logits, scored faster; the same form for grey levels in [0, 1]."""

    def log_prob(self, value: Tensor) -> Tensor:
        """x log p + (1 - x) log(1 - p), [B, C, H, W] nats."""
        return _BernoulliLogProb.apply(*torch.broadcast_tensors(self.logits, value))


class ContinuousBernoulli(Distribution):
    """The Bernoulli form, normalised over [0, 1] (Loaiza-Ganem & Cunningham 2019), by its logit l:

    log p(x) = x l - softplus(l) + log C(l),    C(l) = l / tanh(l / 2).

    Written in l, it stays normalised where the probability, as torch's own class has it, rounds to 0 or 1.

    Args:
        logits: [B, C, H, W].
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """1 / (1 - exp(-l)) - 1 / l, [B, C, H, W]."""
        small = self.logits.abs() < 0.1
        away = torch.where(small, 1.0, self.logits)
        series = 0.5 + self.logits / 12 - self.logits**3 / 720
        return torch.where(small, series, 0.5 + 0.5 / torch.tanh(0.5 * away) - 1 / away)

    def log_prob(self, value: Tensor) -> Tensor:
        """Of value in [0, 1]: [B, C, H, W] nats."""
        small = self.logits.abs() < 0.1
        away = torch.where(small, 1.0, self.logits)  # keep both branches finite, their gradients too
        square = self.logits.square()
        series = math.log(2) + torch.log1p(square / 12 - square.square() / 720)
        log_c = torch.where(small, series, torch.log(away / torch.tanh(0.5 * away)))
        return _BernoulliLogProb.apply(*torch.broadcast_tensors(self.logits, value)) + log_c

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """[*sample_shape, B, C, H, W], by the inverse of the distribution function."""
        shape = (*sample_shape, *self.logits.shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        small = self.logits.abs() < 1e-3
        away = torch.where(small, 1.0, self.logits)
        # x = log(1 + u (e^l - 1)) / l; for l > 0 by symmetry from the other side, where nothing overflows.
        mirrored = -away.abs()
        x = torch.log1p(u * torch.expm1(mirrored)) / mirrored
        return torch.where(small, u, torch.where(away > 0, 1 - x, x))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0, accurate at both ends (Maechler 2012)."""
    small = x < math.log(2)
    safe_small = torch.where(small, x, 1.0)  # keep both branches finite: where() passes NaN gradients on
    safe_large = torch.where(small, 1.0, x)
    return torch.where(small, torch.log(-torch.expm1(-safe_small)), torch.log1p(-torch.exp(-safe_large)))
