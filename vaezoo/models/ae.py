"""The deterministic autoencoder."""

from __future__ import annotations

from torch import Tensor

from vaezoo.distributions import Delta, Posterior
from vaezoo.models.vae import VAE
from vaezoo.objective import Loss, Progress


class AE(VAE):
    """Deterministic autoencoder: a VAE whose posterior is a point and whose loss has no rate.

    Its latent space follows no distribution that is known beforehand, so sampling needs a prior that is
    fitted afterwards (Ghosh et al. 2020); by default a mixture of ten Gaussians.
    """

    paper = "Hinton & Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, Science 2006"
    default_prior = "gaussian_mixture"

    statistics = 1  # the encoder gives z itself

    def make_prior(self) -> None:
        return None

    def encode(self, x: Tensor) -> Posterior:
        return Delta(self.features(x))

    def losses(self, x: Tensor, progress: Progress) -> dict[str, Loss]:
        distortion = self.distortion(x, self.encode(x).rsample()).mean()
        return {"model": Loss(distortion, {"distortion": distortion})}
