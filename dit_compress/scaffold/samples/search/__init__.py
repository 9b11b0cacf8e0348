"""``search: {use: example}``: described without importing its code; this module imports no torch."""

from dit_compress.hooks import Options, Plugin, hookimpl
from pydantic import Field


class ExampleOptions(Options):
    """Change this: whatever a recipe may choose."""

    power: float = Field(2.0, gt=0, description="Of the norm by which a unit's weights count.")


@hookimpl
def search() -> Plugin:
    """Describe the plugin. Change this: ``data=True`` where it looks at clips."""
    return Plugin(
        name="example",
        options=ExampleOptions,
        load="dit_compress.scaffold.samples.search.search:ExampleSearch",
        summary="units with the largest norm of their weights",
    )
