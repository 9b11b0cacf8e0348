"""Event files by torch's writer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from dit_compress.step.protocols import Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress_plugins.tracker_tensorboard import TensorBoardOptions

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Writes ``tensorboard/`` into the step's folder."""

    def __init__(self, options: TensorBoardOptions) -> None:
        self.options = options

    def open(self, folder: Path, *, resume_step: int) -> None:
        """Begin another event file; TensorBoard leaves out what stands in older ones from ``resume_step`` on."""
        self.writer = SummaryWriter(str(folder / FOLDER), purge_step=resume_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values, if it is this step's turn."""
        if step % self.options.every == 0:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        """Write the picture."""
        self.writer.add_image("samples", imread(path), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
