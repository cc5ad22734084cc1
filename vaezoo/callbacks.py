"""What can be told how a run goes: `vaezoo.train(model, data, callbacks=[TensorBoard("runs/vae/log")])`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaezoo.data import ImageData
from vaezoo.errors import VaezooError
from vaezoo.plots import reconstructions, samples, save_grid
from vaezoo.random import seeded
from vaezoo.run import Callback

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Callback", "Pictures", "TensorBoard"]

SHOWN_RECONSTRUCTIONS, SHOWN_SAMPLES = 30, 100


class TensorBoard(Callback):
    """Writes the log for TensorBoard: `tensorboard --logdir FOLDER`.

    Args:
        folder: where its event files go.

    Raises:
        VaezooError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401 - now, not after the first steps
        except ImportError:
            raise VaezooError("TensorBoard is not installed: pip install 'vaezoo[tensorboard]'") from None
        self.folder = Path(folder)
        self.writer: SummaryWriter | None = None

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        writer = self._writer(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def image(self, name: str, tiles: Tensor, step: int) -> None:
        """Write a picture [3, H, W] in [0, 1]."""
        writer = self._writer(step)
        writer.add_image(name, tiles, step)
        writer.flush()

    def _writer(self, step: int) -> SummaryWriter:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted run wrote from this step on, it has done again.
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        return self.writer


class Pictures(Callback):
    """Draws reconstructions of validation images, and samples where the model has a prior, the same images
    and the same latents each time: reconstructions_0001.png, samples_0001.png, ... by the epoch.

    Args:
        data: what the model is trained on.
        folder: where the pictures go.
        every: epochs between them.
        tensorboard: writes them, too.
    """

    def __init__(
        self, data: ImageData, folder: str | Path, every: int = 1, tensorboard: TensorBoard | None = None
    ) -> None:
        if every < 1:
            raise VaezooError(f"Pictures: every={every} is not valid, it must be at least 1 epoch")
        self.folder, self.every, self.tensorboard = Path(folder), every, tensorboard
        chosen = data.validation.subset(SHOWN_RECONSTRUCTIONS, seed=0)
        with seeded(0, chosen.device):  # images may be binarised by a draw
            self.x = chosen.batch(torch.arange(len(chosen), device=chosen.device))

    def on_epoch(self, epoch: int, step: int, model: Any) -> None:
        if epoch % self.every:
            return
        x = self.x.to(next(model.parameters()).device)
        grids = {"reconstructions": reconstructions(model, x)}
        if model.prior is not None:
            grids["samples"] = samples(model, SHOWN_SAMPLES)
        for name, tiles in grids.items():
            save_grid(tiles, self.folder / f"{name}_{epoch:04}.png")
            if self.tensorboard is not None:
                self.tensorboard.image(name, tiles, step)
