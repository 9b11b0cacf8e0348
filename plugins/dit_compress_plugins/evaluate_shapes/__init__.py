"""Evaluate: what a text-to-video model draws of the world of moving shapes, read from its pixels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dit_compress.hooks import Keyed, Options, PartField, Plugin, Slot, hookimpl


class ReaderOptions(Options):
    """Nothing to choose."""


class CounterOptions(Options):
    """smallest: square root of the smallest object's area, as a share of the short side."""

    smallest: float = Field(18 / 96, gt=0, le=1)


class ShapesEvaluationOptions(Options):
    """The videos to generate and read.

    num_captions: how many captions of the test split.
    videos_per_caption: videos of each; two or more give ``diversity``.
    num_steps, guidance: of the sampler; None takes the bundle's.
    batch: videos generated at once.
    seed: of the noise; equal seeds give paired scores.
    source: videos generated for the captions, the real clips, or their round trip through the codec.
    column: heading of the videos in the report; the input's name, steps and guidance if absent.
    sampler: another than the recipe's or the bundle's.
    """

    num_captions: int = Field(100, ge=1)
    videos_per_caption: int = Field(1, ge=1)
    num_steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0)
    batch: int = Field(16, ge=1)
    seed: int = 0
    source: Literal["generated", "real", "round_trip"] = "generated"
    column: str | None = None
    sampler: Annotated[PartField | None, Slot("sampler"), Keyed("sampler")] = None


@hookimpl
def evaluate() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="shapes",
        options=ShapesEvaluationOptions,
        load="dit_compress_plugins.evaluate_shapes.step:ShapesEvaluation",
        requires=("scipy",),
        data=True,
        quality="attribute_accuracy",
        revision=2,
        summary="attribute accuracy on the world of moving shapes",
    )


@hookimpl
def reward() -> Plugin:
    """Register what reads the pixels as a part: it has no gradient, and judges a critic that has."""
    return Plugin(
        name="reader",
        options=ReaderOptions,
        load="dit_compress_plugins.evaluate_shapes.judge:ReaderPart",
        requires=("scipy",),
        summary="a judge that reads moving shapes from pixels: nothing learned, no gradient",
    )


@hookimpl
def counter() -> Plugin:
    """Register what counts shapes in pixels as a part, for ``sampler: count``."""
    return Plugin(
        name="shapes",
        options=CounterOptions,
        load="dit_compress_plugins.evaluate_shapes.counter:CounterPart",
        requires=("scipy",),
        summary="counts moving shapes by colour and shape: nothing learned",
    )
