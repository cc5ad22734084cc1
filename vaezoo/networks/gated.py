"""The fully connected network with gates of the VampPrior's and the Exemplar VAE's experiments."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from vaezoo.networks.mlp import MLP


class Gated(MLP):
    """Gated linear layers (Dauphin et al. 2017), then a linear one; the decoder mirrors the encoder.

    Weights start from N(0, 2 / inputs) (He et al. 2015), as in Tomczak & Welling 2018.
    """

    class Config(MLP.Config):
        hidden: tuple[PositiveInt, ...] = Field(
            (300, 300), description="widths of the encoder's hidden layers, from the image on"
        )

    config: Config

    def layers(self, *widths: int) -> list[nn.Module]:
        *hidden, (last, outputs) = pairwise(widths)
        return [*(GatedLinear(before, after) for before, after in hidden), he_linear(last, outputs)]


class GatedLinear(nn.Module):
    """(W h + b) * sigmoid(V h + c), [B, inputs] -> [B, outputs] (Dauphin et al. 2017, eq. 1).

    Two layers and not one of twice the width: gradients may be normalised tensor by tensor.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.value = he_linear(inputs, outputs)
        self.gate = he_linear(inputs, outputs)

    def forward(self, h: Tensor) -> Tensor:
        return self.value(h) * self.gate(h).sigmoid()


def he_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with weights from N(0, 2 / inputs), and torch's own start of the biases."""
    linear = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return linear
