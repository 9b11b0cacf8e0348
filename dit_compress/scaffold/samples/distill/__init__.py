"""``distill: {use: example}``: described without importing its code; this module imports no torch."""

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.options import DistillOptions
from pydantic import Field


class ExampleOptions(DistillOptions):
    """Options of every training step, and those that this one adds. Change this: whatever your loss needs."""

    caption_dropout: float = Field(0.1, ge=0, lt=1, description="Share of captions dropped, which makes guidance work.")


@hookimpl
def distill() -> Plugin:
    """Describe the plugin. Change this: ``slots=("teacher",)`` where the loss looks at a teacher."""
    return Plugin(
        name="example",
        options=ExampleOptions,
        load="dit_compress.scaffold.samples.distill.distiller:ExampleDistiller",
        world="all",
        data=True,
        summary="flow matching, with one hook to change",
    )
