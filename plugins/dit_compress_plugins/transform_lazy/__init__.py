"""A gate for each attention and FFN and each step of a schedule, zero at first: LazyDiT's."""

from typing import Annotated, Literal

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class LazyTransformOptions(Options):
    """Gates of which modules, for which steps."""

    modules: Annotated[list[Literal["attention", "ffn"]], Field(min_length=1)] = Field(
        ["attention", "ffn"], description="Kinds of modules that get gates."
    )
    num_steps: int | None = Field(
        None, ge=2, description="Steps of the schedule, in which the result is sampled; the input's if absent."
    )
    guidance: float | None = Field(
        None, ge=1, description="With which the result is sampled, and gates are trained; the input's if absent."
    )
    pool: Literal["mean", "sum"] = Field(
        "mean", description="Over tokens; 'sum' is the paper's, and ties gates to one size of video."
    )


@hookimpl
def transform() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="lazy",
        options=LazyTransformOptions,
        load="dit_compress_plugins.transform_lazy.transform:LazyTransform",
        summary="gates by which attention and FFN may skip steps, zero at first (LazyDiT)",
    )
