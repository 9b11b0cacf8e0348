"""``export: {use: example}``: described without importing its code; this module imports no torch."""

from dit_compress.export import Device
from dit_compress.hooks import Options, Plugin, hookimpl


class ExampleOptions(Options):
    """Change this: whatever a recipe may choose. ``device``: a profile by name (``cpu`` …), or a JSON file of yours."""

    device: Device = "cpu"


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
