"""Evaluate: videos named as VBench wants them, and the totals of what it measured."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from dit_compress.hooks import File, Options, Plugin, hookimpl

DIMENSIONS = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality", "object_class", "multiple_objects", "human_action", "color",
    "spatial_relationship", "scene", "appearance_style", "temporal_style", "overall_consistency",
)  # fmt: skip
"""What VBench measures, by the names of its result files."""


class VBenchOptions(Options):
    """Either the videos to write, or the results to read.

    prompts: VBench's ``VBench_full_info.json``, or a text file of one prompt a line.
    dimensions: the dimensions whose prompts are drawn, where ``prompts`` says which is for which; all if absent.
    seeds, flicker_seeds: videos of each prompt; of each prompt for temporal flickering, of which VBench keeps those
        that move little.
    num_steps, guidance: of the sampler; None takes the bundle's.
    batch, fps: videos generated at once; frames a second in the files.
    seed: of the noise; equal seeds give paired videos.
    measure: also run the installed package ``vbench``, on its own weights.
    results: a folder of ``*_eval_results.json``, or one such file: gives the totals, and draws nothing.
    """

    prompts: Annotated[str | None, File()] = None
    dimensions: list[str] | None = Field(None, min_length=1)
    seeds: int = Field(5, ge=1)
    flicker_seeds: int = Field(25, ge=1)
    num_steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0)
    batch: int = Field(4, ge=1)
    fps: float = Field(8.0, gt=0)
    seed: int = 0
    measure: bool = False
    results: Annotated[str | None, File()] = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompts is None) == (self.results is None):
            raise ValueError("give either 'prompts', to write videos, or 'results', to read what VBench measured")
        if unknown := sorted(set(self.dimensions or ()) - set(DIMENSIONS)):
            raise ValueError(f"unknown dimensions: {', '.join(unknown)}. VBench has {', '.join(DIMENSIONS)}")
        return self

    @property
    def idle(self) -> dict[str, str]:
        """Name what only drawing reads."""
        drawing = (name for name in type(self).model_fields if name not in ("prompts", "results"))
        return dict.fromkeys(drawing, "'prompts'") if self.results is not None else {}


@hookimpl
def evaluate() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="vbench",
        options=VBenchOptions,
        load="dit_compress_plugins.evaluate_vbench.step:VBenchEvaluation",
        world="all",
        quality="vbench_total",
        summary="videos for VBench, and its quality, semantic and total score",
    )
