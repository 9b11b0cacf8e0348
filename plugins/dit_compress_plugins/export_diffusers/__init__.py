"""The components as ordinary folders of their own library, readable without this toolkit."""

from dit_compress.export.widths import Widths
from dit_compress.hooks import Options, Plugin, hookimpl


class DiffusersOptions(Options):
    """Of a bundle's nested widths, those that are written, in folders of their own."""

    widths: Widths = None


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="diffusers",
        options=DiffusersOptions,
        load="dit_compress_plugins.export_diffusers.step:DiffusersExport",
        summary="save_pretrained folders; a pruned model with its plan and a loader",
        revision=2,
    )
