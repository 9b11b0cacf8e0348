"""Implements a hook that does not exist."""

from dit_compress.hooks import Options, Plugin, hookimpl


@hookimpl
def serach() -> Plugin:
    """Describe the plugin."""
    return Plugin(name="typo", options=Options, load="dit_broken.search_typo:Nothing")
