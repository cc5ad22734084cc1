"""p(z): what a model samples from."""

from vaezoo.priors.base import Labelled, LatentShape, Prior
from vaezoo.registry import Registry

PRIORS: Registry[type[Prior]] = Registry(
    "prior",
    {
        "standard_normal": "vaezoo.priors.standard_normal:StandardNormal",
        "gaussian_mixture": "vaezoo.priors.gaussian_mixture:GaussianMixture",
        "flow": "vaezoo.priors.flow:FlowPrior",
        "two_stage": "vaezoo.priors.two_stage:TwoStagePrior",
        "vamp": "vaezoo.priors.vamp:VampPrior",
        "pixelcnn": "vaezoo.priors.pixelcnn:PixelCNNPrior",
        "pixelsnail": "vaezoo.priors.pixelsnail:PixelSNAILPrior",
        "transformer": "vaezoo.priors.transformer:TransformerPrior",
    },
    how="vaezoo.priors.PRIORS.register",
)

__all__ = ["PRIORS", "Labelled", "LatentShape", "Prior"]
