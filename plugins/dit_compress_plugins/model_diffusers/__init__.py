"""Any transformer of diffusers as a denoiser, called by what its forward signature asks for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from dit_compress.core.pipeline import DENOISERS, INDEX, SCHEDULER
from dit_compress.hooks import File, Keyed, Options, Plugin, hookimpl

LAYOUTS = ("BCTHW", "BTCHW", "BCHW", "packed_video", "packed_image")
"""Layouts of a module's latent. ``BCHW`` and ``packed_image`` see every latent frame as an image of its own."""

LTX_ROPE_SCALE = (8 / 25, 32.0, 32.0)
"""Seconds per latent frame at 25 frames a second, pixels per cell: those of LTX's pipeline for its 8x32x32 VAE."""

MOST_LAYERS, MOST = 1000, 1_000_000
"""Of numbers in a class's config: of layers or blocks, and of anything else."""


class DiffusersOptions(Options):
    """A local folder, or a class with its config and random weights.

    path: a folder with config.json and safetensors, or a pipeline's folder (``model_index.json``, ``transformer/``).
    part: of a pipeline with two experts the one that is taken; each is a model of its own, for its sigmas.
    weights: a safetensors file in the original repository's layout (Wan, LTX, Flux), instead of the folder's weights
        or random ones.
    prediction: what the module's output is. Not given: read from the pipeline's scheduler, else ``velocity``.
        ``reversed`` is ``x0 - noise``; ``noise``, ``x0`` and ``v`` are those of a variance-preserving model.
    reversed_time: the module's clock runs from 0 at noise to 1 at data.
    timestep_scale: the timestep at sigma 1. Not given: 1000, or 1 where the module multiplies by itself.
    layout: how the module takes its latent. Not given: observed by trying.
    scheduler: config of a variance-preserving scheduler, for ``noise``, ``x0`` and ``v``.
    rope_scale: ``rope_interpolation_scale`` where the module asks for it.
    guidance: told to a module that guidance was distilled into. Not given: what its pipeline has when not asked.
    """

    path: Annotated[str | None, File((*DENOISERS, SCHEDULER, INDEX, "vae/config.json", "flow.json"))] = None
    part: Annotated[Literal["transformer", "transformer_2"], Keyed("part")] = "transformer"
    weights: Annotated[str | None, File(), Keyed("weights")] = None
    class_name: str | None = None
    config: dict[str, Any] | None = None
    prediction: Literal["velocity", "reversed", "noise", "x0", "v"] | None = None
    reversed_time: bool | None = None
    timestep_scale: PositiveFloat | None = None
    layout: Literal["BCTHW", "BTCHW", "BCHW", "packed_video", "packed_image"] | None = None
    scheduler: dict[str, Any] | None = None
    rope_scale: tuple[float, float, float] = LTX_ROPE_SCALE
    guidance: Annotated[float | None, Keyed("guidance")] = Field(None, ge=0, le=1000)

    @model_validator(mode="after")
    def _one_source(self) -> DiffusersOptions:
        if (self.path is None) == (self.class_name is None):
            raise ValueError("give either 'path' (a local folder) or 'class_name' with its 'config'")
        if self.path is None and self.part != DENOISERS[0]:
            raise ValueError(f"'part: {self.part}' is of a pipeline: give its folder as 'path'")
        if self.path is not None and self.config is not None:
            raise ValueError("'config' goes with 'class_name'; a folder brings its own: remove it")
        for name, value in (self.config or {}).items():
            most = MOST_LAYERS if "layers" in name or "blocks" in name else MOST
            if isinstance(value, int) and value > most:
                raise ValueError(f"'{name}' of 'config' is {value:,}: give at most {most:,}")
        return self


@hookimpl
def model() -> Plugin:
    """Describe ``model: {use: diffusers, path: ltx-video/}``."""
    return Plugin(
        name="diffusers",
        options=DiffusersOptions,
        load="dit_compress_plugins.model_diffusers.adapter:DiffusersModel",
        requires=("diffusers",),
        revision=2,
        summary="any diffusers transformer whose forward signature is understood",
    )
