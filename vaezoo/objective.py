"""What a model hands to the trainer, and what the trainer hands to a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """What one parameter group minimises.

    Attributes:
        total: scalar, nats per image averaged over the batch; the trainer differentiates it.
        terms: scalars to log, by name. They take no part in the gradient.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where the run stands: all that schedules and estimators need, so that no module counts steps itself.

    Attributes:
        step: scalar float tensor on the device, 0 at the first step. A tensor, so that a compiled or
            captured step sees its value change.
        total_steps: length of the run.
        dataset_size: number of training images.
    """

    step: Tensor
    total_steps: int
    dataset_size: int

    def ramp(self, steps: int) -> Tensor | float:
        """Rises linearly from 0 at the first step to 1 at step `steps`, then stays; 1 when `steps` is 0."""
        return (self.step / steps).clamp(max=1.0) if steps else 1.0
