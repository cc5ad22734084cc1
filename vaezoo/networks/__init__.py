"""Encoders and decoders, chosen by name and orthogonal to the model."""

from vaezoo.networks.base import Network
from vaezoo.registry import Registry

NETWORKS: Registry[type[Network]] = Registry(
    "network",
    {
        "mlp": "vaezoo.networks.mlp:MLP",
        "gated": "vaezoo.networks.gated:Gated",
        "conv": "vaezoo.networks.conv:Conv",
        "resnet": "vaezoo.networks.resnet:ResNet",
    },
)

__all__ = ["NETWORKS", "Network"]
