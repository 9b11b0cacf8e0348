"""Layouts by a dynamic programme: each block's kinds are scored alone, and the best sum within the budgets is found."""

from typing import Annotated, Literal

from pydantic import Field

from dit_compress.hooks import File, Options, Plugin, hookimpl


class ProgrammeOptions(Options):
    """The scores, and how many partial layouts may be held."""

    scores: Annotated[str | None, File()] = Field(
        None, description="JSON: block → kind → loss added; if absent, each kind is measured in each block alone."
    )
    most: int = Field(20_000, ge=1, description="Partial layouts that are held at once; more is an error.")

    @property
    def reads_data(self) -> Literal["no", "if any", "yes"]:
        """Scores are measured; where they are supplied, what they expect is compared with a loss if there is one."""
        return "yes" if self.scores is None else "if any"

    @property
    def held_out(self) -> bool:
        """True where losses are compared."""
        return self.scores is None


@hookimpl
def layout() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="dp",
        options=ProgrammeOptions,
        load="dit_compress_plugins.layout_dp.programme:ProgrammeLayout",
        summary="budget-aware dynamic programme over block kinds (S2DiT)",
    )
