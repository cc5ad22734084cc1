"""Convolutional VAE."""

from __future__ import annotations

from pydantic import Field

from vaezoo.models.vae import VAE


class ConvVAE(VAE):
    """VAE with the convolutional network of the disentanglement literature.

    The model is the VAE; only the default network differs: 4x4 stride-2 convolutions 32-32-64-64 and a
    hidden layer of 256, mirrored, for images of 28, 32, 64 pixels and up.
    """

    paper = (
        "Kingma & Welling, ICLR 2014, with the network of Locatello et al., "
        "Challenging Common Assumptions, ICML 2019, table 1"
    )

    class Config(VAE.Config):
        network: str = Field("conv", description="name of the encoder and decoder: conv, resnet, mlp, ...")
