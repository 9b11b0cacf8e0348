"""A search of a stranger: the last units of every axis stay."""

from dit_compress.hooks import Options, Plugin, hookimpl


class LastOptions(Options):
    """Nothing to choose."""


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="last",
        options=LastOptions,
        load="dit_stranger.search_last.last:LastSearch",
        summary="the last units of every axis",
    )
