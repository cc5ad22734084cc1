"""The variational autoencoder."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution

from vaezoo.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    DiagonalGaussian,
    Latent,
    LatentShape,
    Loss,
    Posterior,
    Prior,
    Progress,
)
from vaezoo.config import BaseConfig
from vaezoo.errors import VaezooError
from vaezoo.likelihoods import LIKELIHOODS
from vaezoo.networks import NETWORKS
from vaezoo.priors.standard_normal import StandardNormal


class VAE(Autoencoder):
    """Variational autoencoder: a Gaussian posterior, an N(0, I) prior, trained on the ELBO.

    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z))        (eq. 3 of the paper)

    The loss is the negative ELBO, distortion + rate, with one sample of z per image by the
    reparameterisation z = mean + sigma * eps and the KL in closed form.

    Args:
        config: the options.
        encoder: a module of your own, [B, C, H, W] -> [B, 2 * latent_dim] (mean, then log-variance),
            instead of the one that `network` makes.
        decoder: a module of your own, [B, latent_dim] -> [B, parameters, H, W], where parameters is C times
            what the likelihood needs for each channel.
    """

    paper = "Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014, arXiv:1312.6114"

    class Config(AutoencoderConfig):
        latent_dim: int = Field(20, ge=1, description="dimensions of z")
        network: str = Field("mlp", description="name of the encoder and decoder: mlp, conv, resnet, ...")
        network_options: dict[str, Any] = Field({}, description="options of the network, such as hidden")
        likelihood: str = Field("bernoulli", description="name of p(x|z): bernoulli, gaussian, ...")
        likelihood_scale: float = Field(
            0.1, gt=0, description="scale of a Gaussian or Laplace p(x|z), or where a learned one starts"
        )
        kl_warmup_steps: int = Field(
            0, ge=0, description="steps over which the weight of the rate rises from 0 to its value"
        )

    config: Config

    #: Encoder outputs for each latent dimension: mean and log-variance.
    statistics = 2

    def __init__(
        self, config: Config, encoder: nn.Module | None = None, decoder: nn.Module | None = None
    ) -> None:
        super().__init__(config)
        self.likelihood = LIKELIHOODS.get(config.likelihood)(config.likelihood_scale)
        channels, height, width = config.image_shape
        self.decoder_shape = (channels * self.likelihood.parameters_per_channel, height, width)
        if encoder is None or decoder is None:
            network_class = NETWORKS.get(config.network)
            options = network_class.Config.parse(config.network_options, f"network '{config.network}'")
            network = network_class(options)
            encoder = encoder or network.encoder(config.image_shape, self.statistics * config.latent_dim)
            decoder = decoder or network.decoder(config.latent_dim, self.decoder_shape)
        self.encoder = encoder
        self.decoder = decoder
        self.prior = self.make_prior()

    def make_prior(self) -> Prior | None:
        return StandardNormal(BaseConfig(), self.latent)

    @property
    def latent(self) -> LatentShape:
        return LatentShape(((self.config.latent_dim,),))

    def features(self, x: Tensor) -> Tensor:
        """The encoder's output, [B, statistics * latent_dim]."""
        expected = self.statistics * self.config.latent_dim
        h = self.encoder(x)
        if h.shape[1:] != (expected,):
            raise VaezooError(
                f"the encoder gives {tuple(h.shape)} for {tuple(x.shape)} images; "
                f"{type(self).__name__} with latent_dim={self.config.latent_dim} needs (batch, {expected})"
            )
        return h.float() if h.dtype.itemsize == 2 else h  # under autocast: posteriors are kept in float32

    def encode(self, x: Tensor) -> Posterior:
        mean, log_variance = self.features(x).chunk(2, dim=-1)
        return DiagonalGaussian(mean, log_variance)

    def decode(self, z: Latent) -> Distribution:
        parameters = self.decoder(z)
        if parameters.shape[1:] != self.decoder_shape:
            needed = ", ".join(map(str, self.decoder_shape))
            raise VaezooError(
                f"the decoder gives {tuple(parameters.shape)}; {type(self).__name__} with "
                f"likelihood='{self.config.likelihood}' needs (batch, {needed})"
            )
        return self.likelihood(parameters)

    def penalty(self, rate: Tensor, progress: Progress) -> Tensor:
        """What is added to the distortion, a scalar in nats per image, for the rate of each image, [B]."""
        return progress.ramp(self.config.kl_warmup_steps) * rate.mean()

    def losses(self, x: Tensor, progress: Progress) -> dict[str, Loss]:
        q = self.encode(x)
        z = q.rsample()
        distortion = self.distortion(x, z).mean()
        rate = self.rate(q, z)
        terms = {"distortion": distortion, "rate": rate.mean(), "elbo": -distortion - rate.mean()}
        return {"model": Loss(distortion + self.penalty(rate, progress), terms)}
