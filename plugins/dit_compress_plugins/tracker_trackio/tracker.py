"""A run of Trackio for each training step of a recipe."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

import trackio

from dit_compress.model.paths import run_and_step
from dit_compress.step.protocols import Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress_plugins.tracker_trackio import TrackioOptions


class TrackioTracker(Tracker):
    """Writes into Trackio's database."""

    def __init__(self, options: TrackioOptions) -> None:
        self.options = options

    def open(self, folder: Path, *, resume_step: int) -> None:
        """Begin a run, or go on with that of the same name; what it has from ``resume_step`` on is the same again."""
        group, name = run_and_step(folder)
        with redirect_stdout(StringIO()):  # it greets
            self.run = trackio.init(
                project=self.options.project,
                name=f"{group}/{name}",
                group=group,
                space_id=self.options.space,
                resume="allow" if resume_step else "never",
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values, if it is this step's turn."""
        if step % self.options.every == 0:
            self.run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Record the picture."""
        self.run.log({"samples": trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        """Write what is left."""
        with redirect_stdout(StringIO()):
            self.run.finish()
