"""Training curves and pictures for Weights & Biases: written to disk, sent where that is asked for."""

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class WandbOptions(Options):
    """Where the run belongs.

    project, entity: as in W&B; the account's default entity if absent.
    online: send while training; otherwise ``wandb sync`` sends the step's ``wandb/`` later.
    every: steps between values.
    """

    project: Annotated[str, Field(min_length=1)] = "dit-compress"
    entity: str | None = None
    online: bool = False
    every: int = Field(1, ge=1)


@hookimpl
def tracker() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="wandb",
        options=WandbOptions,
        load="dit_compress_plugins.tracker_wandb.tracker:WandbTracker",
        requires=("wandb",),
        extra="wandb",
        summary="wandb/ in the step's folder; sent on request",
    )
