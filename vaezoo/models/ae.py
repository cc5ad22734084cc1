"""The deterministic autoencoder, and the networks and likelihood that the VAEs take over from it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution

from vaezoo.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    Delta,
    Latent,
    LatentShape,
    Loss,
    Posterior,
    Progress,
)
from vaezoo.errors import VaezooError
from vaezoo.likelihoods import LIKELIHOODS
from vaezoo.networks import NETWORKS


class AE(Autoencoder):
    """Deterministic autoencoder: the latent is a point, and the loss is the distortion alone.

    Its latents follow no distribution that is known beforehand, so sampling needs a prior that is fitted
    afterwards (Ghosh et al. 2020); by default a mixture of ten Gaussians.

    Args:
        config: the options.
        encoder: a module of your own, [B, C, H, W] -> [B, statistics * latent_dim], instead of the one that
            `network` makes; `statistics` is 1 for points and 2 for mean, then log-variance.
        decoder: a module of your own, [B, latent_dim] -> [B, parameters, H, W], where parameters is C times
            what the likelihood needs for each channel.
    """

    paper = "Hinton & Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, Science 2006"
    equation = r"-\log p(x \mid z), \qquad z = f(x)"
    default_prior: ClassVar[str | None] = "gaussian_mixture"

    class Config(AutoencoderConfig):
        latent_dim: int = Field(20, ge=1, description="dimensions of z")
        network: str = Field("mlp", description="name of the encoder and decoder: mlp, conv, resnet, ...")
        network_options: dict[str, Any] = Field({}, description="options of the network, such as hidden")
        likelihood: str = Field("bernoulli", description="name of p(x|z): bernoulli, gaussian, ...")
        likelihood_scale: float = Field(
            0.1, gt=0, description="scale of a Gaussian or Laplace p(x|z), or where a learned one starts"
        )

    config: Config

    #: Encoder outputs for each latent dimension: z itself.
    statistics = 1

    def __init__(
        self, config: Config, encoder: nn.Module | None = None, decoder: nn.Module | None = None
    ) -> None:
        super().__init__(config)
        self.likelihood = LIKELIHOODS.get(config.likelihood)(config.likelihood_scale)
        channels, height, width = config.image_shape
        self.decoder_shape = (channels * self.likelihood.parameters_per_channel, height, width)
        network_class = NETWORKS.get(config.network)
        network = network_class(
            network_class.Config.parse(config.network_options, f"network '{config.network}'")
        )
        if encoder is None:
            encoder = network.encoder(config.image_shape, self.statistics * config.latent_dim)
        if decoder is None:
            decoder = network.decoder(config.latent_dim, self.decoder_shape)
        self.encoder = encoder
        self.decoder = decoder
        self.prior = self.make_prior()

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
        return Delta(self.features(x))

    def decode(self, z: Latent) -> Distribution:
        parameters = self.decoder(z)
        if parameters.shape[1:] != self.decoder_shape:
            needed = ", ".join(map(str, self.decoder_shape))
            raise VaezooError(
                f"the decoder gives {tuple(parameters.shape)}; {type(self).__name__} with "
                f"likelihood='{self.config.likelihood}' needs (batch, {needed})"
            )
        return self.likelihood(parameters)

    def losses(self, x: Tensor, progress: Progress) -> dict[str, Loss]:
        distortion = self.distortion(x, self.encode(x).rsample()).mean()
        return {"model": Loss(distortion, {"distortion": distortion})}
