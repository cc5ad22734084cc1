"""log p(x) without q(z|x): annealed importance sampling, and how far it is from the truth.

Chains go from the prior to the posterior over p_b(z) = p(z) p(x|z)^b / Z_b, b from 0 to 1, by Hamiltonian
Monte Carlo (Neal 2001; Wu et al. 2017). Their weights are unbiased for p(x), so their logarithm is a lower
bound on log p(x) in expectation. Chains that go back from an exact draw of the posterior give an upper bound.
There is such a draw for an image that the model itself made, and the two bounds on it show how tight both are
(bidirectional Monte Carlo, Grosse et al. 2015).

All this holds whatever the step sizes are, as long as they do not depend on the chains that are weighed. So a
shorter pilot run, with noise of its own, finds them, for every image and temperature; then they are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vaezoo.autoencoder import Autoencoder
from vaezoo.errors import NotFittedError
from vaezoo.evaluation.likelihood import caveat
from vaezoo.evaluation.observe import Observed
from vaezoo.evaluation.report import Results, Skipped, average
from vaezoo.inference import evaluation_mode
from vaezoo.random import derive, generator, seeded

NAMES = ("ais_log_likelihood", "bdmc_gap")

#: The length of the path, the chains of an image, and the steps of a trajectory.
TEMPERATURES, CHAINS, LEAPFROG = 1000, 4, 5

#: The pilot run takes every so manieth temperature.
PILOT = 4

#: The acceptance rate that the pilot run aims at (Neal 2011), its first step size, and how fast it adapts.
ACCEPTANCE, FIRST_STEP, RATE = 0.65, 0.5, 0.3

#: Chains that are run at a time, times the pixels of an image, which bounds memory.
CHAIN_PIXELS = 2**20

#: log p(z) and log p(x|z), [C, B] nats each, of C chains of B images, z [C, B, D].
Density = Callable[[Tensor], tuple[Tensor, Tensor]]


class State(NamedTuple):
    """Where chains are: z [C, B, D], and log p(z) and log p(x|z), [C, B], with their gradients, [C, B, D]."""

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_gradient: Tensor
    likelihood_gradient: Tensor

    def log_density(self, temperature: float) -> Tensor:
        return self.log_prior + temperature * self.log_likelihood

    def gradient(self, temperature: float) -> Tensor:
        return self.prior_gradient + temperature * self.likelihood_gradient


def evaluate_at(density: Density, z: Tensor) -> State:
    """The state at z."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_prior, log_likelihood = density(z)
        (prior_gradient,) = torch.autograd.grad(log_prior.sum(), z, retain_graph=True)
        (likelihood_gradient,) = torch.autograd.grad(log_likelihood.sum(), z)
    return State(z.detach(), log_prior.detach(), log_likelihood.detach(), prior_gradient, likelihood_gradient)


def temperatures(n: int) -> list[float]:
    """0 = b_0 < ... < b_n = 1, closest at both ends: a sigmoid over [-4, 4], scaled (Wu et al. 2017)."""
    sigmoid = [1 / (1 + math.exp(4 - 8 * i / n)) for i in range(n + 1)]
    return [(s - sigmoid[0]) / (sigmoid[-1] - sigmoid[0]) for s in sigmoid]


def transition(
    density: Density, state: State, temperature: float, step: Tensor, noise: torch.Generator
) -> tuple[State, Tensor]:
    """One trajectory of Hamiltonian Monte Carlo, which leaves p_b invariant and is reversible.

    Args:
        density: of the latents.
        state: where the chains are.
        temperature: b.
        step: step size of each image, [B].
        noise: draws momenta, acceptance, and a factor in [0.8, 1.2] of the step, against periodic orbits.

    Returns:
        the new state, and the probability that each chain had of moving, [C, B].
    """
    momentum = torch.randn(state.z.shape, dtype=state.z.dtype, device=state.z.device, generator=noise)
    jitter, uniform = torch.rand(
        2, *state.log_prior.shape, dtype=state.z.dtype, device=state.z.device, generator=noise
    )
    size = (step * (0.8 + 0.4 * jitter)).unsqueeze(-1)
    kinetic = 0.5 * momentum.square().sum(-1)
    proposal = state
    momentum = momentum + 0.5 * size * proposal.gradient(temperature)
    for i in range(LEAPFROG):
        proposal = evaluate_at(density, proposal.z + size * momentum)
        last = i == LEAPFROG - 1
        momentum = momentum + (0.5 if last else 1.0) * size * proposal.gradient(temperature)
    gain = proposal.log_density(temperature) - state.log_density(temperature)
    probability = torch.exp(gain + kinetic - 0.5 * momentum.square().sum(-1)).clamp(max=1).nan_to_num(0)
    moved = uniform < probability
    parts = (
        torch.where(moved.unsqueeze(-1) if new.dim() > moved.dim() else moved, new, old)
        for new, old in zip(proposal, state)
    )
    return State(*parts), probability


def anneal(
    density: Density, start: Tensor, path: list[float], steps: Tensor, noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Run chains along a path of temperatures, up from the prior or down from the posterior.

    Args:
        density: of the latents.
        start: exact draws at the first temperature of the path, [C, B, D].
        path: b_0, ..., b_n, from 0 to 1 or from 1 to 0.
        steps: step sizes at b_1, ..., b_(n-1), [n - 1, B].
        noise: draws the trajectories.

    Returns:
        log weights, sum_t |b_t - b_(t-1)| log p(x|z_(t-1)), [C, B] nats (Neal 2001), and the share of
        trajectories that were accepted, by image, [B].
    """
    state = evaluate_at(density, start)
    log_weights = torch.zeros_like(state.log_likelihood, dtype=torch.float64)
    accepted = torch.zeros_like(log_weights)
    for t, (before, after) in enumerate(pairwise(path)):
        log_weights += abs(after - before) * state.log_likelihood.double()
        if t < len(steps):
            state, probability = transition(density, state, after, steps[t], noise)
            accepted += probability
    return log_weights, accepted.mean(0) / max(1, len(steps))


def tune(density: Density, start: Tensor, path: list[float], noise: torch.Generator) -> Tensor:
    """Step sizes [n - 1, B] for the inner temperatures of a path, from a pilot run up a part of them."""
    state = evaluate_at(density, start)
    log_step = start.new_full(start.shape[1:2], math.log(FIRST_STEP))
    steps = []
    inner = path[1:-1]
    for temperature in inner[::PILOT]:
        steps.append(log_step.exp())
        state, probability = transition(density, state, temperature, steps[-1], noise)
        log_step = log_step + RATE * (probability.mean(0) - ACCEPTANCE)
    return torch.stack(steps).repeat_interleave(PILOT, 0)[: len(inner)]


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log of the mean of weights over chains, [C, B] -> [B]."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def density_of(model: Autoencoder, x: Tensor) -> Density:
    """log p(z) and log p(x|z) of images [B, C, H, W]."""
    prior = model.require_prior()

    def density(z: Tensor) -> tuple[Tensor, Tensor]:
        chains, flat = len(z), z.flatten(0, 1)
        images = x.expand(chains, *x.shape).flatten(0, 1)
        return prior.log_prob(flat).view(chains, -1), -model.distortion(images, flat).view(chains, -1)

    return density


def from_prior(model: Autoencoder, images: int, noise: torch.Generator) -> Tensor:
    """Where chains start, [CHAINS, B, D]."""
    z = model.require_prior().sample(CHAINS * images, noise)
    assert isinstance(z, Tensor)
    return z.view(CHAINS, images, -1)


def lower_bound(model: Autoencoder, x: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Stochastic lower bound on log p(x) by annealing from the prior, [B] nats; the share of accepted
    trajectories, [B]; the step sizes, [n - 1, B]."""
    density, path = density_of(model, x), temperatures(TEMPERATURES)
    steps = tune(density, from_prior(model, len(x), noise), path, noise)
    log_weights, accepted = anneal(density, from_prior(model, len(x), noise), path, steps, noise)
    return log_mean_exp(log_weights), accepted, steps


def upper_bound(model: Autoencoder, x: Tensor, z: Tensor, steps: Tensor, noise: torch.Generator) -> Tensor:
    """Stochastic upper bound on log p(x) by annealing to the prior, [B] nats.

    Args:
        model: with a prior over vectors.
        x: images drawn from p(x|z), [B, C, H, W].
        z: the latents that they were drawn at, [B, D], which makes them draws of p(z|x).
        steps: step sizes on the way up, [n - 1, B], from noise that has nothing to do with z.
        noise: draws the trajectories.
    """
    # All chains start from the one exact draw there is. They are not independent, but the mean of their
    # inverse weights is still unbiased for 1 / p(x), which is all that the bound takes.
    path = temperatures(TEMPERATURES)[::-1]
    log_weights, _ = anneal(density_of(model, x), z.expand(CHAINS, *z.shape), path, steps.flip(0), noise)
    return -log_mean_exp(-log_weights)


def measure_annealing(model: Autoencoder, observed: Observed, images: Iterator[Tensor], seed: int) -> Results:
    """The annealed bound on given images, and the gap between both bounds on as many simulated ones.

    Args:
        model: with a prior over real vectors, or all is skipped.
        observed: the pass over the evaluated images.
        images: batches [B, C, H, W].
        seed: of chains and simulated images.
    """
    if not model.latent.is_vector:
        return dict.fromkeys(NAMES, Skipped("annealing moves one real vector, and the latents are others"))
    try:
        prior = model.require_prior()
    except NotFittedError as error:
        return dict.fromkeys(NAMES, Skipped(str(error)))
    device = next(model.parameters()).device
    chains = generator(derive(seed, "chains"), device)
    simulated = generator(derive(seed, "simulated latents"), device)
    bounds, shares, gaps = [], [], []
    with evaluation_mode(model), seeded(derive(seed, "simulated images"), device):
        for batch in images:
            for x in batch.split(max(1, CHAIN_PIXELS // (CHAINS * batch[0].numel()))):
                bound, accepted, _ = lower_bound(model, x, chains)
                bounds.append(bound)
                shares.append(accepted)
                z = prior.sample(len(x), simulated)
                assert isinstance(z, Tensor)
                made = model.decode(z).sample()
                lower, _, steps = lower_bound(model, made, chains)
                gaps.append(upper_bound(model, made, z, steps, chains) - lower)
    share = torch.cat(shares).mean().item()
    how = f"{TEMPERATURES} temperatures, {CHAINS} chains, {LEAPFROG} leapfrog steps"
    return {
        "ais_log_likelihood": average(
            torch.cat(bounds),
            "nats per image",
            "higher",
            "; ".join(filter(None, [f"from the prior; {how}, {share:.0%} accepted", caveat(observed)])),
        ),
        "bdmc_gap": average(
            torch.cat(gaps),
            "nats per image",
            "lower",
            f"upper minus lower bound on images drawn from the model; {how}",
        ),
    }
