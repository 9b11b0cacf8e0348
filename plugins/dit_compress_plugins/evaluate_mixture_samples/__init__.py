"""Evaluate: how far what a model samples is from the mixture it learned, in a world that is known exactly."""

from __future__ import annotations

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class MixtureSamplesOptions(Options):
    """The samples, and what they are compared by.

    num_captions: captions of the test split, evenly spread over those that it has.
    samples_per_caption: samples of each; as many are drawn of the exact mixture, twice.
    num_steps, guidance: of the sampler; None takes the bundle's.
    directions: random lines on which samples are sorted and compared.
    radius: share of the exact samples of a mode that are as near to its mean as what counts as near.
    batch: latents sampled at a time.
    seed: of noise, exact samples and directions; equal seeds give paired figures.
    """

    num_captions: int = Field(32, ge=1)
    samples_per_caption: int = Field(128, ge=2)
    num_steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=1)
    directions: int = Field(128, ge=1)
    radius: float = Field(0.99, gt=0, lt=1)
    batch: int = Field(512, ge=1)
    seed: int = 0


@hookimpl
def evaluate() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="mixture_samples",
        options=MixtureSamplesOptions,
        load="dit_compress_plugins.evaluate_mixture_samples.step:MixtureSamples",
        requires=("scipy",),
        data=True,
        quality="explained",
        revision=2,
        headline="sliced_wasserstein",
        summary="samples against the exact mixture: sliced Wasserstein distance, modes covered",
    )
