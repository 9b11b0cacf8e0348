"""``export: {use: executorch}``: ``.pte`` files for Android and iOS, delegated to XNNPACK and executed here."""

from __future__ import annotations

from dit_compress.export.base import ExportOptions
from dit_compress.export.profiles import Device
from dit_compress.hooks import Plugin, hookimpl


class ExecuTorchOptions(ExportOptions):
    """Options of ``executorch``.

    precision: of weights and arithmetic; inputs and outputs stay float32.
    device: a profile by name (``generic-android`` …) or a JSON file.
    """

    device: Device = "generic-android"


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="executorch",
        options=ExecuTorchOptions,
        load="dit_compress_plugins.export_executorch.exporter:ExecuTorchExport",
        revision=2,
        requires=("executorch",),
        extra="executorch",
        summary=".pte files for Android and iOS (XNNPACK), executed with ExecuTorch",
    )
