"""Keep the units whose removal would change the loss most, to first order."""

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import PartField, Plugin, Slot, hookimpl
from dit_compress.train.options import ProbeOptions


class TaylorOptions(ProbeOptions):
    """Importance is the root mean square, over samples, of the loss' derivative by the unit's mask."""

    objective: Annotated[
        PartField, Slot("distill"), Field(default="flow", description="The loss: of flow matching, or of a teacher.")
    ]


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="taylor",
        options=TaylorOptions,
        load="dit_compress_plugins.search_taylor.search:TaylorSearch",
        data=True,
        summary="units by the loss' first-order change",
    )
