"""``latent: {use: example}``: described without importing its code; this module imports no torch."""

from dit_compress.hooks import Options, Plugin, hookimpl
from pydantic import Field


class ExampleOptions(Options):
    """Change this: whatever a recipe may choose. Options of ``train.options.TrainOptions`` come with the one loop."""

    frames: int = Field(4, ge=1, description="Pixels per latent cell along time; videos have 1 + frames·k frames.")
    cell: int = Field(8, ge=1, description="Pixels per latent cell along height and width.")
    channels: int = Field(64, ge=1, description="Of the latent: principal components kept.")
    clips: int = Field(256, ge=1, description="Training clips that the components are computed from.")


@hookimpl
def latent() -> Plugin:
    """Describe the plugin; ``data=True`` makes the clips part of the step's key."""
    return Plugin(
        name="example",
        options=ExampleOptions,
        load="dit_compress.scaffold.samples.latent.codec:ExampleStep",
        data=True,
        summary="principal components of patches",
    )
