"""A layout that is there already: one that was found before, or written by hand."""

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import File, Options, Plugin, hookimpl


class GivenLayoutOptions(Options):
    """The file."""

    path: Annotated[str, File()] = Field(description="layout.json of an earlier step, or one with its 'layout' alone.")


@hookimpl
def layout() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="given",
        options=GivenLayoutOptions,
        load="dit_compress_plugins.layout_given.given:GivenLayout",
        summary="the layout of a file",
    )
