"""Try every choice: the true optimum, for small spaces."""

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import PartField, Plugin, Slot, hookimpl
from dit_compress.train.options import ProbeOptions


class ExhaustiveOptions(ProbeOptions):
    """Every choice is measured on the same batches."""

    most: int = Field(10_000, ge=1, description="An upper bound on choices to try; more is an error.")
    objective: Annotated[
        PartField, Slot("distill"), Field(default="flow", description="The loss: of flow matching, or of a teacher.")
    ]


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="exhaustive",
        options=ExhaustiveOptions,
        load="dit_compress_plugins.search_exhaustive.search:ExhaustiveSearch",
        data=True,
        summary="every choice, for small spaces",
    )
