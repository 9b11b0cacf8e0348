"""A run of W&B for each training step of a recipe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import uuid4

from dit_compress.core.files import read_json, write_json
from dit_compress.model.paths import run_and_step
from dit_compress.step.protocols import Tracker

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import: nothing is sent that nobody asked for
import wandb

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress_plugins.tracker_wandb import WandbOptions

IDENTITY = "wandb.json"
QUIET = wandb.Settings(
    console="off", silent=True, disable_git=True, x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True
)
"""Values and pictures only: neither the machine nor its packages."""


class WandbTracker(Tracker):
    """Writes ``wandb/`` into the step's folder; a resumed step goes on with its run."""

    def __init__(self, options: WandbOptions) -> None:
        self.options = options

    def open(self, folder: Path, *, resume_step: int) -> None:
        """Begin a run, or go on with the one of the checkpoint, whose later values are the same again."""
        known = folder / IDENTITY
        if not resume_step or not known.exists():
            write_json(known, {"id": uuid4().hex[:12]})
        group, name = run_and_step(folder)
        self.run = wandb.init(
            project=self.options.project,
            entity=self.options.entity,
            dir=folder,
            id=read_json(known)["id"],
            name=f"{group}/{name}",
            group=group,
            mode="online" if self.options.online else "offline",
            resume="allow" if self.options.online else None,
            settings=QUIET,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values, if it is this step's turn."""
        if step % self.options.every == 0:
            self.run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Record the picture."""
        self.run.log({"samples": wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Write what is left."""
        self.run.finish()
