"""Euler steps in which gated modules skip: by their gates, or by a table of them (LazyDiT)."""

from typing import Literal

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class LazySamplerOptions(Options):
    """By the gates of each input, or by one table for all."""

    skip: Literal["gates", "table"] = Field(
        "gates", description="'table': what is skipped at which step is fixed, by the gates' means in training."
    )
    ratio: float | None = Field(
        None, gt=0, lt=1, description="Of a table: the share of calls skipped; if absent, where a mean is below 0.5."
    )

    @property
    def idle(self) -> dict[str, str]:
        """The ratio, without a table."""
        return super().idle | ({} if self.skip == "table" else {"ratio": "'skip: table'"})


@hookimpl
def sampler() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="lazy",
        options=LazySamplerOptions,
        load="dit_compress_plugins.sampler_lazy.sampler:LazySampler",
        summary="Euler steps in which gated modules skip (LazyDiT)",
    )
