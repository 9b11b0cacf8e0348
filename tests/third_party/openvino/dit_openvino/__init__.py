"""``export: {use: openvino}``: OpenVINO IR for PCs, executed with OpenVINO's CPU plugin."""

from typing import Literal

from dit_compress.export import ExportOptions
from dit_compress.hooks import Plugin, hookimpl


class OpenVINOOptions(ExportOptions):
    """precision: of weights and arithmetic."""

    precision: Literal["float32"] = "float32"


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="openvino",
        options=OpenVINOOptions,
        load="dit_openvino.exporter:OpenVINOExport",
        requires=("openvino",),
        summary="OpenVINO IR, executed with its CPU plugin",
    )
