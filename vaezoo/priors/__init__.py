"""p(z): what a model samples from."""

from vaezoo.priors.base import Labelled, LatentShape, Prior
from vaezoo.registry import PRIORS

__all__ = ["PRIORS", "Labelled", "LatentShape", "Prior"]
