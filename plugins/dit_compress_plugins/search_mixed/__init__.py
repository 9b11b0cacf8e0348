"""Blocks by one search, what is inside them by another."""

from typing import Annotated

from pydantic import Field, field_validator

from dit_compress.hooks import Options, Part, PartField, Plugin, Slot, hookimpl


class MixedOptions(Options):
    """Two searches, each for its own axes of the unpruned model."""

    blocks: Annotated[PartField, Slot("search"), Field(default="greedy", description="The search for blocks.")]
    rest: Annotated[
        PartField, Slot("search"), Field(default="taylor", description="The search for heads, channels, any other.")
    ]

    @field_validator("blocks", "rest")
    @classmethod
    def _measures(cls, given: Part) -> Part:
        if given.plugin.world == "all":
            raise ValueError(
                f"{given.name!r} trains, for all levels together: name one that is not learnt, "
                f"or begin {given.name!r} from 'mixed'"
            )
        return given


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="mixed",
        options=MixedOptions,
        load="dit_compress_plugins.search_mixed.search:MixedSearch",
        data=True,
        summary="blocks by one search, the rest by another",
    )
