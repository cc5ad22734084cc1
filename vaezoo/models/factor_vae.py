"""FactorVAE."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from vaezoo.distributed import alike, gather, own
from vaezoo.models.vae import VAE
from vaezoo.objective import Loss, Progress


class FactorVAE(VAE):
    """VAE with a penalty on the total correlation of its latents, which a discriminator estimates.

    distortion + rate + gamma * E_q(z)[log D(z) / (1 - D(z))]        (eq. 2 and 3)

    D(z) is the probability that z comes from the aggregate posterior q(z) and not from the product of its
    marginals. The discriminator is a parameter group of its own, trained by cross-entropy on the two kinds.
    For the second kind, each dimension is permuted across the batch (algorithm 1). The paper permutes the
    latents of a second batch; here they are a second draw from the posteriors of the whole batch, so that
    the two kinds share no sample and no step costs two batches.

    Neither group gets a gradient from the other's loss: the discriminator learns from detached latents, and
    judges with frozen parameters. Its loss and accuracy are logged; at an accuracy of .5 it sees no
    dependence. KL warm-up, where it is used, holds for the whole penalty, rate and total correlation.

    Args:
        config: the options.
        encoder: as in `vae`.
        decoder: as in `vae`.
    """

    paper = "Kim & Mnih, Disentangling by Factorising, ICML 2018, arXiv:1802.05983"
    equation = (
        r"-\mathbb{E}_{q(z \mid x)}\left[\log p(x \mid z)\right] "
        r"+ \mathrm{KL}\left(q(z \mid x) \,\|\, p(z)\right) "
        r"+ \gamma\, \mathbb{E}_{q(z)}\left[\log \frac{D(z)}{1 - D(z)}\right]"
    )
    recipes = {
        # Kim & Mnih 2018, appendix A, for the discriminator; the schedule goes for both groups.
        "*": {**VAE.recipes["*"], "groups": {"discriminator": {"lr": 1e-4, "betas": (0.5, 0.9)}}}
    }

    class Config(VAE.Config):
        gamma: float = Field(10.0, ge=0, description="weight of the total correlation; 10 to 40 in the paper")
        discriminator_width: int = Field(1000, ge=1, description="units in each layer of the discriminator")
        discriminator_depth: int = Field(6, ge=1, le=64, description="hidden layers of the discriminator")

    config: Config

    def __init__(
        self, config: Config, encoder: nn.Module | None = None, decoder: nn.Module | None = None
    ) -> None:
        super().__init__(config, encoder, decoder)
        widths = [config.latent_dim] + [config.discriminator_width] * config.discriminator_depth
        hidden = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
        self.discriminator = nn.Sequential(*hidden, nn.Linear(widths[-1], 2))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        critic = list(self.discriminator.parameters())
        members = set(critic)
        model = [p for p in super().parameter_groups()["model"] if p not in members]
        return {"model": model, "discriminator": critic}

    def log_ratio(self, z: Tensor, frozen: bool = False) -> Tensor:
        """The discriminator's log D(z)/(1 - D(z)), [B], of z [B, D]; its mean over q(z) estimates the total
        correlation. `frozen`: as a function of z alone, without a gradient to the discriminator."""
        if frozen:
            parameters = {name: p.detach() for name, p in self.discriminator.named_parameters()}
            logits = functional_call(self.discriminator, parameters, (z,))
        else:
            logits = self.discriminator(z)
        logits = logits.float() if logits.dtype.itemsize == 2 else logits  # under autocast
        return logits[:, 0] - logits[:, 1]

    def losses(self, x: Tensor, progress: Progress) -> dict[str, Loss]:
        q, z, rate, terms = self.elbo(x)
        correlation = self.log_ratio(z, frozen=True)
        penalty = self.penalty(rate + self.config.gamma * correlation, progress)
        terms["total_correlation"] = correlation.mean()
        return {
            "model": Loss(terms["distortion"] + penalty, terms),
            "discriminator": self.discriminate(z.detach(), permute_dimensions(q.sample())),
        }

    def discriminate(self, joint: Tensor, product: Tensor) -> Loss:
        """Cross-entropy of telling z ~ q(z) from z ~ prod_d q(z_d), both [B, D], half of each: nats per z."""
        real, fake = self.log_ratio(joint), self.log_ratio(product)
        loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
        accuracy = 0.5 * ((real > 0).to(real).mean() + (fake <= 0).to(fake).mean())
        return Loss(loss, {"discriminator": loss, "discriminator_accuracy": accuracy})


def permute_dimensions(z: Tensor) -> Tensor:
    """z [B, D] with each column in an order of its own: samples from the product of the marginals."""
    whole = gather(z)
    return own(whole.gather(0, alike(torch.rand, whole.shape, z.device).argsort(0)))
