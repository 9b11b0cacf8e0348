"""``levels: {example: {...}}``: described without importing its code; this module imports no torch."""

from dit_compress.hooks import Options, Plugin, hookimpl
from pydantic import Field


class ExampleOptions(Options):
    """Change this: whatever a recipe may choose."""

    remove: int | None = Field(None, ge=0, description="Runs to remove from every feed-forward.")
    run: int = Field(32, ge=1, description="Neighbouring channels that go together.")


@hookimpl
def granularity() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="example",
        options=ExampleOptions,
        load="dit_compress.scaffold.samples.granularity.axes:ExampleGranularity",
        summary="feed-forward channels in runs",
    )
