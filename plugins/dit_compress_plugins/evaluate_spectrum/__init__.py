"""Evaluate: the spectrum of the latents, alone or before and after a change of the VAE."""

from __future__ import annotations

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class SpectrumOptions(Options):
    """The clips whose latents are looked at.

    num_clips: how many clips of the test split.
    batch: clips encoded at once.
    bands: rings of frequencies, from constant to the finest.
    """

    num_clips: int = Field(64, ge=1)
    batch: int = Field(8, ge=1)
    bands: int = Field(8, ge=2, le=64)

    @property
    def any_size(self) -> bool:
        """True: the latents of each size have their own frequencies, and radii that compare."""
        return True


@hookimpl
def evaluate() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="spectrum",
        options=SpectrumOptions,
        load="dit_compress_plugins.evaluate_spectrum.step:SpectrumEvaluation",
        revision=2,
        slots=("against",),
        data=True,
        summary="power of the latents by frequency, and the share of the upper half; against another VAE",
    )
