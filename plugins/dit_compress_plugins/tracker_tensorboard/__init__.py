"""Training curves and pictures for TensorBoard."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class TensorBoardOptions(Options):
    """The interval of writing."""

    every: int = Field(1, ge=1, description="Steps between values.")


@hookimpl
def tracker() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="tensorboard",
        options=TensorBoardOptions,
        load="dit_compress_plugins.tracker_tensorboard.tracker:TensorBoardTracker",
        requires=("tensorboard",),
        extra="tensorboard",
        summary="tensorboard/ in the step's folder",
    )
