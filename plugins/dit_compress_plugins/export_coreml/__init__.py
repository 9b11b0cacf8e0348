"""``export: {use: coreml}``: fp16 ``.mlpackage`` files, reloaded and executed by a MIL interpreter."""

from __future__ import annotations

from typing import Literal

from dit_compress.hooks import Options, Plugin, hookimpl


class CoreMLOptions(Options):
    """Options of ``coreml``.

    precision: of weights and arithmetic.
    minimum_os: oldest iOS that shall open the files; from 18 on attention is one fused operator.
    compute_units: the hint in the manifest for the app.
    """

    precision: Literal["float16", "float32"] = "float16"
    minimum_os: Literal["iOS16", "iOS17", "iOS18"] = "iOS18"
    compute_units: Literal["ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY"] = "CPU_AND_NE"


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="coreml",
        options=CoreMLOptions,
        load="dit_compress_plugins.export_coreml.exporter:CoreMLExport",
        requires=("coremltools",),
        extra="coreml",
        summary=".mlpackage files for iOS and macOS, executed by a MIL interpreter",
    )
