"""A plug-in for vaezoo: one class here, one line in pyproject.toml."""

from pydantic import Field

from vaezoo.models.vae import VAE
from vaezoo.objective import Loss


class FreeBitsVAE(VAE):
    """VAE in which a rate of up to `free_bits` nats in each latent dimension costs nothing more to use."""

    paper = "Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, NeurIPS 2016"

    class Config(VAE.Config):
        free_bits: float = Field(
            0.1, ge=0, description="lambda, nats per dimension, as a mean over the batch"
        )

    def losses(self, x, progress):
        q = self.encode(x)
        distortion = self.distortion(x, q.rsample()).mean()
        rate = q.kl_per_dimension().mean(0)
        penalty = progress.ramp(self.config.kl_warmup_steps) * rate.clamp_min(self.config.free_bits).sum()
        return {"model": Loss(distortion + penalty, {"distortion": distortion, "rate": rate.sum()})}
