"""``export: {use: executorch}``: ``.pte`` files for Android and iOS, delegated to XNNPACK and executed here."""

from __future__ import annotations

from dit_compress.hooks import Options, Plugin, hookimpl


class ExecuTorchOptions(Options):
    """Options of ``executorch``. Weights and arithmetic are float32.

    device: a profile by name (``generic-android`` …) or a JSON file.
    """

    device: str = "generic-android"


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="executorch",
        options=ExecuTorchOptions,
        load="dit_compress_plugins.export_executorch.exporter:ExecuTorchExport",
        requires=("executorch",),
        extra="executorch",
        summary=".pte files for Android and iOS (XNNPACK), executed with ExecuTorch",
    )
