"""Evaluate: what each width of a nested model is worth, and what it costs."""

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import Options, PartField, Plugin, Slot, hookimpl


class WidthsOptions(Options):
    """An evaluation, done at each width."""

    of: Annotated[PartField, Slot("evaluate"), Field(description="The evaluation that is done at each width.")]
    widths: list[float] | None = Field(None, min_length=1, description="Some of the model's; all of them if absent.")

    @property
    def any_size(self) -> bool:
        """True: the evaluation itself says whether it takes clips of several sizes."""
        return True


@hookimpl
def evaluate() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="widths",
        options=WidthsOptions,
        load="dit_compress_plugins.evaluate_widths.step:WidthsEvaluation",
        revision=2,
        summary="another evaluation at each nested width, with parameters and FLOPs",
    )
