"""``export: {use: example}``: described without importing its code; this module imports no torch."""

from typing import Literal

from dit_compress.export import ExportOptions
from dit_compress.hooks import Plugin, hookimpl


class ExampleOptions(ExportOptions):
    """Change this: whatever a recipe may choose beside ``device``. precision: of weights and arithmetic."""

    precision: Literal["float32"] = "float32"


@hookimpl
def export() -> Plugin:
    """Describe the plugin. Change this: ``requires`` names the packages that your runtime needs."""
    return Plugin(
        name="example",
        options=ExampleOptions,
        load="dit_compress.scaffold.samples.export.exporter:ExampleExport",
        requires=(),
        summary="a JSON graph and safetensors, executed by an interpreter",
    )
