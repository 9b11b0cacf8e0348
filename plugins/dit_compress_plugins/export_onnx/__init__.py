"""``export: {use: onnx}``: ONNX files, executed with ONNX Runtime."""

from __future__ import annotations

from pydantic import Field

from dit_compress.export.base import ExportOptions
from dit_compress.hooks import Plugin, hookimpl


class ONNXOptions(ExportOptions):
    """Options of ``onnx``.

    precision: of weights and arithmetic; inputs and outputs stay float32.
    opset: version of the operators.
    device: a profile by name (``cpu``, ``generic-android``, ``iphone-16-pro-max``) or a JSON file.
    """

    opset: int = Field(default=20, ge=18, le=23)


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="onnx",
        options=ONNXOptions,
        load="dit_compress_plugins.export_onnx.exporter:ONNXExport",
        requires=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        revision=3,
        summary=".onnx files for Android and desktop, executed with ONNX Runtime",
    )
