"""Training curves and pictures for Trackio: a local database, looked at by ``trackio show``."""

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class TrackioOptions(Options):
    """Where the run belongs.

    project: as in Trackio; its database is where Trackio keeps it (``TRACKIO_DIR``).
    space: a Space of the Hugging Face Hub to send the values to; none sends nothing.
    every: steps between values.
    """

    project: Annotated[str, Field(min_length=1)] = "dit-compress"
    space: str | None = None
    every: int = Field(1, ge=1)


@hookimpl
def tracker() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="trackio",
        options=TrackioOptions,
        load="dit_compress_plugins.tracker_trackio.tracker:TrackioTracker",
        requires=("trackio",),
        extra="trackio",
        summary="Trackio's database; sent on request",
    )
