"""The components as ordinary folders of their own library, readable without this toolkit."""

from typing import Annotated

from dit_compress.export.widths import Widths
from dit_compress.hooks import File, Keyed, Options, Plugin, hookimpl


class DiffusersOptions(Options):
    """What is written around the bundle.

    widths: of its nested widths, those that are written, in folders of their own.
    pipeline: the folder of the whole pipeline that the bundle's parts go into; the one that its model came from if
        absent. Where there is neither, the parts are written alone.
    single_file: write the denoiser in its original repository's layout, too: what ComfyUI reads.
    """

    widths: Widths = None
    pipeline: Annotated[str | None, File(), Keyed("pipeline")] = None
    single_file: Annotated[bool, Keyed("single_file")] = False


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="diffusers",
        options=DiffusersOptions,
        load="dit_compress_plugins.export_diffusers.step:DiffusersExport",
        summary="a whole pipeline, or its parts: save_pretrained folders; a pruned model with its plan and a loader",
        slots=("other",),
        revision=3,
    )
