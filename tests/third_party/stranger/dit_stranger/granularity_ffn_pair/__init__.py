"""Feed-forward channels in pairs, for hardware that computes two at once."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class PairOptions(Options):
    """What share of the pairs stays."""

    keep: float = Field(gt=0, le=1)


@hookimpl
def granularity() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="ffn_pair",
        options=PairOptions,
        load="dit_stranger.granularity_ffn_pair.granularity:PairGranularity",
        summary="feed-forward channels in pairs",
    )
