"""Evaluate: the loss above the best possible, in a world whose exact velocity is known."""

from __future__ import annotations

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class ExcessOptions(Options):
    """The held-out draws, and the noise levels at which they are looked at.

    num_draws: latents of the test split, each with noise of its own at every level.
    num_sigmas: noise levels, the middles of equal runs of the schedule.
    shift: of that schedule; the bundle's if absent.
    batch: latents at a time.
    seed: of the noise; equal seeds give paired figures.
    """

    num_draws: int = Field(512, ge=1)
    num_sigmas: int = Field(8, ge=1, le=1000)
    shift: float | None = Field(None, gt=0)
    batch: int = Field(256, ge=1)
    seed: int = 0


@hookimpl
def evaluate() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="excess",
        options=ExcessOptions,
        load="dit_compress_plugins.evaluate_excess.step:ExcessEvaluation",
        data=True,
        quality="explained",
        headline="excess",
        revision=2,
        summary="the loss above the best possible, where the exact velocity is known",
    )
