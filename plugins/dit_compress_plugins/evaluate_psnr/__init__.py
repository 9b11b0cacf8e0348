"""Evaluate: how well the codec gives clips back, as peak signal-to-noise ratio."""

from __future__ import annotations

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class PsnrOptions(Options):
    """The clips to encode and decode.

    num_clips: how many clips of the test split.
    batch: clips encoded at once.
    """

    num_clips: int = Field(100, ge=1)
    batch: int = Field(8, ge=1)


@hookimpl
def evaluate() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="psnr",
        options=PsnrOptions,
        load="dit_compress_plugins.evaluate_psnr.step:PsnrEvaluation",
        data=True,
        headline="psnr_db",
        summary="PSNR of the codec on the test clips",
    )
