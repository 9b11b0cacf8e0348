"""``export: {use: coreml}``: fp16 ``.mlpackage`` files, reloaded and executed by a MIL interpreter."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, model_validator

from dit_compress.export.base import ExportOptions
from dit_compress.export.profiles import Device
from dit_compress.hooks import Plugin, hookimpl

Weights = Literal["int8", "int4", "palette6", "palette4"]
WEIGHT_BITS: dict[str | None, int] = {"int8": 8, "int4": 4, "palette6": 6, "palette4": 4}


class CoreMLOptions(ExportOptions):
    """Options of ``coreml``.

    precision: of weights and arithmetic.
    minimum_os: oldest iOS that shall open the files; from 18 on attention is one fused operator.
    compute_units: the hint in the manifest for the app.
    weights: how matrices and kernels are stored; as ``precision`` says where absent. int4 is per block of 32 and
        needs iOS 18.
    device: a profile by name (``iphone-16-pro-max`` …) or a JSON file; its ``max_file_bytes`` decides where a
        component is split into chunks.
    sizes: further videos (frames, height, width) that the files take beside the recipe's own; needs iOS 18.
    """

    precision: Literal["float16", "float32"] = "float16"
    minimum_os: Literal["iOS16", "iOS17", "iOS18"] = "iOS18"
    compute_units: Literal["ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY"] = "CPU_AND_NE"
    weights: Weights | None = None
    device: Device = "iphone-16-pro-max"
    sizes: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> CoreMLOptions:
        if self.weights == "int4" and self.minimum_os != "iOS18":
            raise ValueError("int4 weights per block need iOS 18: set 'minimum_os: iOS18', or take palette4")
        if self.weights in ("palette4", "palette6") and self.precision == "float32":
            raise ValueError("palettes are made of float16 weights: set 'precision: float16'")
        if self.sizes and self.minimum_os != "iOS18":
            raise ValueError("several sizes in one file need iOS 18: set 'minimum_os: iOS18', or leave 'sizes' out")
        return self


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="coreml",
        options=CoreMLOptions,
        load="dit_compress_plugins.export_coreml.exporter:CoreMLExport",
        requires=("coremltools",),
        extra="coreml",
        revision=3,
        summary=".mlpackage files for iOS and macOS, executed by a MIL interpreter",
    )
