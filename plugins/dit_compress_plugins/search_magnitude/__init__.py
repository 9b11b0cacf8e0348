"""Keep the units with the largest weights."""

from dit_compress.hooks import Options, Plugin, hookimpl


class MagnitudeOptions(Options):
    """Importance is the L2 norm of a unit's weights, each tensor scaled to mean 1 first."""


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="magnitude",
        options=MagnitudeOptions,
        load="dit_compress_plugins.search_magnitude.search:MagnitudeSearch",
        summary="units with the largest weights",
    )
