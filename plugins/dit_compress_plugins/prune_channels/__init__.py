"""``prune: {use: channels, component: latent}``: channels of a VAE's decoder, by Torch-Pruning's graph."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Options, Plugin, hookimpl

Share = Annotated[float, Field(gt=0, lt=1)]


class ChannelsOptions(Options):
    """Either ``ratio`` or ``params``."""

    component: Literal["latent"] = Field("latent", description="What is pruned: the decoder of the bundle's VAE.")
    ratio: Share | None = Field(None, description="Share of the channels of every group that goes.")
    params: float | None = Field(None, gt=0, description="Most parameters of the decoder; below 1 a share of them.")
    multiple_of: int = Field(4, ge=1, le=4096, description="Channels that stay are as many, or a multiple.")
    importance: Literal["magnitude", "lamp", "fpgm"] = Field("magnitude", description="One of Torch-Pruning's.")
    p: int = Field(2, ge=1, description="Of the norm: the sum over a channel's weights of their p-th power.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.ratio is None) == (self.params is None):
            raise ValueError("give either 'ratio' or 'params'")
        return self


@hookimpl
def prune() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="channels",
        options=ChannelsOptions,
        load="dit_compress_plugins.prune_channels.step:ChannelPruning",
        requires=("torch_pruning",),
        extra="pruning",
        summary="channels of a VAE's decoder, by Torch-Pruning's dependency graph",
    )
