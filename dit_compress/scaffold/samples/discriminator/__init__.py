"""``discriminator: {use: example}``: described without importing its code; this module imports no torch."""

from dit_compress.hooks import Options, Plugin, hookimpl
from pydantic import Field


class ExampleOptions(Options):
    """Change this: whatever a recipe may choose."""

    frozen_blocks: int = Field(10, ge=1, description="Blocks of the generator whose output is judged.")
    hidden: int = Field(256, ge=1, description="Width of the head.")


@hookimpl
def discriminator() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="example",
        options=ExampleOptions,
        load="dit_compress.scaffold.samples.discriminator.discriminator:ExamplePart",
        summary="an MLP on a frozen block's output",
    )
