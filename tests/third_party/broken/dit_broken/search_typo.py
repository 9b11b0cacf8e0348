"""Implements a hook that does not exist."""

from dit_compress.plugin.kinds import hookimpl
from dit_compress.plugin.options import Options, Plugin


@hookimpl
def serach() -> Plugin:
    """Describe the plugin."""
    return Plugin(name="typo", options=Options, load="dit_broken.search_typo:Nothing")
