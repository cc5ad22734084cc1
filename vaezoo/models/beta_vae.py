"""beta-VAE."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from vaezoo.models.vae import VAE
from vaezoo.objective import Progress


class BetaVAE(VAE):
    """VAE whose rate weighs beta times as much, which presses for disentangled latents.

    distortion + beta * |rate - C(t)|

    With C = 0, the default, this is beta-VAE (Higgins et al. 2017, eq. 4); with a capacity C that rises
    linearly it is eq. 8 of Burgess et al. 2018, where beta is called gamma. As the distortion is summed over
    pixels and the likelihood is normalised, beta is the paper's beta at every image size.
    """

    paper = (
        "Higgins et al., beta-VAE, ICLR 2017; "
        "Burgess et al., Understanding disentangling in beta-VAE, 2018, arXiv:1804.03599"
    )

    equation = (
        r"-\mathbb{E}_{q(z \mid x)}\left[\log p(x \mid z)\right] "
        r"+ \beta \left| \mathrm{KL}\left(q(z \mid x) \,\|\, p(z)\right) - C(t) \right|"
    )

    class Config(VAE.Config):
        beta: float = Field(4.0, ge=0, description="weight of the rate; 1 is the VAE")
        capacity: float = Field(0.0, ge=0, description="final capacity C in nats; 0: no capacity schedule")
        capacity_steps: int = Field(
            100_000, ge=1, description="steps over which the capacity rises from 0 to C"
        )

    config: Config

    def penalty(self, rate: Tensor, progress: Progress) -> Tensor:
        capacity = self.config.capacity * progress.ramp(self.config.capacity_steps)
        weight = self.config.beta * progress.ramp(self.config.kl_warmup_steps)
        return weight * (rate.mean() - capacity).abs()
