"""``export: {use: coreai}``: ``.aimodel`` assets for iOS and macOS 27, executed with Core AI's reference runtime."""

from __future__ import annotations

from typing import Literal

from dit_compress.export.base import ExportOptions
from dit_compress.export.profiles import Device
from dit_compress.hooks import Plugin, hookimpl


class CoreAIOptions(ExportOptions):
    """Options of ``coreai``.

    precision: of weights and arithmetic; inputs and outputs stay float32.
    device: a profile by name (``iphone-16-pro-max`` …) or a JSON file.
    """

    precision: Literal["float16", "float32"] = "float16"
    device: Device = "iphone-16-pro-max"


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="coreai",
        options=CoreAIOptions,
        load="dit_compress_plugins.export_coreai.exporter:CoreAIExport",
        requires=("coreai_torch", "coreai"),
        extra="coreai",
        revision=2,
        summary=".aimodel assets for iOS and macOS 27, executed with Core AI's reference runtime",
    )
