"""Euler steps across the boundary of two experts (Wan 2.2): each is called at the sigmas that it is for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import File, Options, Plugin, hookimpl


class ExpertsOptions(Options):
    """The expert that a bundle is not."""

    other: Annotated[str, File()] = Field(description="The bundle, or the run, of the other expert.")
    guidance: float | None = Field(None, ge=0, description="Of the other expert; the bundle's own if absent.")


@hookimpl
def sampler() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="experts",
        options=ExpertsOptions,
        load="dit_compress_plugins.sampler_experts.sampler:ExpertsSampler",
        summary="Euler steps across the boundary of two experts",
    )
