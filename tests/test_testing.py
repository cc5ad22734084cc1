"""Every check of the contract kit finds the mistake that it is there for, and no other check cries wolf."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import Field
from torch import nn
from torch.distributions import Distribution

import vaezoo.testing
from vaezoo.models.ae import AE
from vaezoo.models.vae import VAE
from vaezoo.objective import Loss
from vaezoo.random import generator
from vaezoo.registry import MODELS

SMALL = {"image_shape": (1, 8, 8), "latent_dim": 2, "network_options": {"hidden": [16]}}


def failing(monkeypatch, cls: type[VAE]) -> dict[str, str]:
    """The checks that a model fails, and what they say."""
    monkeypatch.setitem(MODELS._table, "under_test", cls)
    if cls.__doc__ is None:
        monkeypatch.setattr(cls, "__doc__", "A model.")
    said = {}
    for check in vaezoo.testing.CHECKS:
        try:
            check(lambda: vaezoo.create("under_test", **SMALL))
        except AssertionError as error:
            said[check.__name__] = str(error)
    return said


class Critic(VAE):
    """A model with a second parameter group, isolated as the contract asks."""

    paper = "none"

    def __init__(self, config, encoder=None, decoder=None):
        super().__init__(config, encoder, decoder)
        self.critic = nn.Linear(config.latent_dim, 1)

    def parameter_groups(self):
        own = list(self.critic.parameters())
        return {"model": [*self.encoder.parameters(), *self.decoder.parameters()], "critic": own}

    def judged(self, z):
        frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
        return torch.func.functional_call(self.critic, frozen, (z,)).mean()

    def shown(self, z):
        return z.detach()

    def losses(self, x, progress):
        loss = super().losses(x, progress)["model"]
        z = self.encode(x).rsample()
        critic = nn.functional.softplus(self.critic(self.shown(z))).mean()
        return {"model": Loss(loss.total + self.judged(z), loss.terms), "critic": Loss(critic)}


@pytest.mark.parametrize("cls", [VAE, AE, Critic])
def test_sound_models_pass(monkeypatch, cls):
    assert failing(monkeypatch, cls) == {}


def changed(loss: Loss, total: Any = None, **terms: Any) -> dict[str, Loss]:
    return {"model": Loss(loss.total if total is None else total, {**loss.terms, **terms})}


class FieldWithoutMeaning(VAE):
    class Config(VAE.Config):
        width: int = 3


class ConfigThatJsonChanges(VAE):
    class Config(VAE.Config):
        extra: Any = Field({1: 2}, description="the key comes back from JSON as text")


class NoPaper(VAE):
    paper = ""


class NoDocstring(VAE):
    __doc__ = ""


class PixelRows(Distribution):
    """log_prob is right, but it says that an event is less than an image."""

    def __init__(self, whole):
        self.whole = whole
        super().__init__(whole.mean.shape[:2], whole.mean.shape[2:], validate_args=False)

    @property
    def mean(self):
        return self.whole.mean

    def log_prob(self, x):
        return self.whole.log_prob(x)


class EventIsNotAnImage(VAE):
    def decode(self, z):
        return PixelRows(super().decode(z))


class BatchStatistics(VAE):
    def features(self, x):
        h = super().features(x)
        return h - h.mean(0)


class TermsPerImage(VAE):
    def losses(self, x, progress):
        loss = super().losses(x, progress)["model"]
        return changed(loss, brightness=x.mean((1, 2, 3)))


class UnseededLoss(VAE):
    calls = 0

    def losses(self, x, progress):
        type(self).calls += 1
        noise = torch.rand((), generator=generator(self.calls, "cpu")).to(x.device)
        loss = super().losses(x, progress)["model"]
        return changed(loss, loss.total + 1e-3 * noise)


class UnknownGroup(VAE):
    def losses(self, x, progress):
        return {**super().losses(x, progress), "other": Loss(self.decoder[0].bias.square().sum())}


class LossIsNaN(VAE):
    def losses(self, x, progress):
        loss = super().losses(x, progress)["model"]
        return changed(loss, ratio=loss.total * float("nan"))


class MeanOverPixels(VAE):
    def losses(self, x, progress):
        loss = super().losses(x, progress)["model"]
        return changed(loss, loss.total / 64, distortion=loss.terms["distortion"] / 64)


class SumOverBatch(VAE):
    def losses(self, x, progress):
        loss = super().losses(x, progress)["model"]
        return changed(loss, loss.total * len(x))


class ParameterWithoutGroup(VAE):
    def parameter_groups(self):
        return {"model": super().parameter_groups()["model"][:-1]}


class ParameterTwice(VAE):
    def parameter_groups(self):
        (own,) = super().parameter_groups().values()
        return {"model": [*own, own[0]]}


class UnusedParameter(VAE):
    def __init__(self, config, encoder=None, decoder=None):
        super().__init__(config, encoder, decoder)
        self.spare = nn.Parameter(torch.zeros(3))


class CriticTrainsTheEncoder(Critic):
    def shown(self, z):
        return z


class ModelTrainsTheCritic(Critic):
    def judged(self, z):
        return self.critic(z).mean()


class CountsInEvaluation(VAE):
    def __init__(self, config, encoder=None, decoder=None):
        super().__init__(config, encoder, decoder)
        self.register_buffer("calls", torch.zeros(()))

    def losses(self, x, progress):
        self.calls += 1
        return super().losses(x, progress)


class IgnoresTheGenerator(VAE):
    def sample(self, n, generator=None):
        return super().sample(n)


class AlwaysTheSameSamples(VAE):
    def sample(self, n, generator=None):
        return super().sample(n, generator and generator.manual_seed(0))


class SamplesWithoutPrior(AE):
    def sample(self, n, generator=None):
        if self.prior is not None:
            return super().sample(n, generator)
        return self.decode(torch.randn(n, self.config.latent_dim)).mean


class ReconstructsSomethingElse(VAE):
    def reconstruct(self, x):
        return 0.5 * super().reconstruct(x)


class LogProbOfTheBatch(VAE):
    def log_prob(self, x, samples=1, generator=None):
        return super().log_prob(x, samples, generator).mean()


class ClimbsInsteadOfDescends(VAE):
    def losses(self, x, progress):
        loss = super().losses(x, progress)["model"]
        return changed(loss, 2 * loss.total.detach() - loss.total)


class StateOutsideTheCheckpoint(VAE):
    def __init__(self, config, encoder=None, decoder=None):
        super().__init__(config, encoder, decoder)
        self.shift = torch.rand(config.latent_dim)

    def decode(self, z):
        return super().decode(z + self.shift)


class TensorLeftOnTheCpu(VAE):
    def decode(self, z):
        return super().decode(z + torch.zeros(self.config.latent_dim))


class ReadsBackToTheHost(VAE):
    def losses(self, x, progress):
        loss = super().losses(x, progress)["model"]
        return changed(loss, loss.total if loss.total.item() > -1e9 else loss.total * 0)


@pytest.mark.parametrize(
    ("cls", "check", "says"),
    [
        (FieldWithoutMeaning, "config_is_json", "'width' has no description"),
        (ConfigThatJsonChanges, "config_is_json", "came back from JSON"),
        (NoPaper, "documented", "paper is empty"),
        (NoDocstring, "documented", "has no docstring"),
        (EventIsNotAnImage, "distributions", r"event shape (8, 8)"),
        (BatchStatistics, "images_are_independent", "the rest of its batch"),
        (TermsPerImage, "losses", "terms of 'model'"),
        (UnseededLoss, "losses", "differs under the same seed"),
        (UnknownGroup, "losses", "'other' has no parameter group"),
        (LossIsNaN, "losses", "nan"),
        (MeanOverPixels, "units", "nats per image"),
        (SumOverBatch, "units", "no average"),
        (ParameterWithoutGroup, "parameter_groups", "not all the parameters"),
        (ParameterTwice, "parameter_groups", "share parameters"),
        (UnusedParameter, "gradients", "'spare' gets no gradient"),
        (CriticTrainsTheEncoder, "gradients", "'encoder."),
        (ModelTrainsTheCritic, "gradients", "'critic."),
        (CountsInEvaluation, "evaluation_changes_nothing", "'calls' changed in eval mode"),
        (IgnoresTheGenerator, "sampling", "the same generator gave other samples"),
        (AlwaysTheSameSamples, "sampling", "another generator gave the same samples"),
        (SamplesWithoutPrior, "sampling", "must say how to fit one"),
        (ReconstructsSomethingElse, "latent_tools", "does not begin at a"),
        (LogProbOfTheBatch, "log_prob", "has shape ()"),
        (ClimbsInsteadOfDescends, "training_helps", "the loss went from"),
        (StateOutsideTheCheckpoint, "checkpoint", "reconstructions differ"),
        (TensorLeftOnTheCpu, "cuda_ready", "left on the CPU"),
        (ReadsBackToTheHost, "cuda_ready", "read back to the host"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_each_check_finds_its_mistake(monkeypatch, cls, check, says):
    said = failing(monkeypatch, cls)
    expected = {f"check_{check}"}
    if cls in (ConfigThatJsonChanges, IgnoresTheGenerator):  # neither can come back from a checkpoint
        expected.add("check_checkpoint")
    assert set(said) == expected, said
    assert says in said[f"check_{check}"]
