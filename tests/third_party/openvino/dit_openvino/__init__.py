"""``export: {use: openvino}``: OpenVINO IR for PCs, executed with OpenVINO's CPU plugin."""

from dit_compress.export import Device
from dit_compress.hooks import Options, Plugin, hookimpl


class OpenVINOOptions(Options):
    """device: a profile by name, or a JSON file."""

    device: Device = "cpu"


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
