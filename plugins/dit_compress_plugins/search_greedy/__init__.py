"""Remove one part after another, each time the one whose removal costs the least loss."""

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import PartField, Plugin, Slot, hookimpl
from dit_compress.train.options import ProbeOptions


class GreedyOptions(ProbeOptions):
    """Sensitivity, measured anew after every removal."""

    at_once: int = Field(1, ge=1, description="Parts removed after each measurement of all that may go.")
    most: int = Field(20_000, ge=1, description="An upper bound on losses to measure; more is an error.")
    objective: Annotated[
        PartField, Slot("distill"), Field(default="flow", description="The loss: of flow matching, or of a teacher.")
    ]


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="greedy",
        options=GreedyOptions,
        load="dit_compress_plugins.search_greedy.search:GreedySearch",
        revision=2,
        data=True,
        summary="part by part, the cheapest in loss first",
    )
