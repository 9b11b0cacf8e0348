"""Random choice: the baseline every other search must beat."""

from dit_compress.hooks import Options, Plugin, hookimpl


class RandomOptions(Options):
    """Nothing to choose; the recipe's seed decides."""


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="random",
        options=RandomOptions,
        load="dit_compress_plugins.search_random.search:RandomSearch",
        summary="units at random",
    )
