"""Layouts by evolution: whole layouts are tried, the best are crossed and changed, and a Pareto front is left."""

from typing import Literal

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class EvolutionOptions(Options):
    """How many layouts are tried, and how a new one comes from those before."""

    evaluations: int = Field(64, ge=1, description="Layouts that are tried; each is trained for a short while.")
    population: int = Field(8, ge=2, description="Layouts at the start, and from how many of the best others come.")
    swaps: float = Field(0.5, ge=0, le=1, description="Share of new layouts in which two blocks exchange their kinds.")
    crossover: float = Field(0.5, ge=0, le=1, description="Share of the others that have two parents.")
    mutation: float = Field(
        0.3, gt=0, le=1, description="Share of their blocks whose kind is drawn anew; one at least."
    )
    against: Literal["params", "flops", "seconds", "memory"] | None = Field(
        None, description="The price on the front's other axis; the first of the budgets if absent."
    )

    @property
    def held_out(self) -> bool:
        """True: losses are compared."""
        return True


@hookimpl
def layout() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="evolution",
        options=EvolutionOptions,
        load="dit_compress_plugins.layout_evolution.evolution:EvolutionLayout",
        data=True,
        summary="evolution of whole layouts to a Pareto front (SnapGen-V)",
    )
