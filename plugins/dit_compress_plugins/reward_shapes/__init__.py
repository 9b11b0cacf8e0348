"""Reward: a small 3D CNN that answers, for each attribute of a caption in the world of moving shapes, yes or no."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class ShapesRewardOptions(Options):
    """The critic's size and training. It is trained once for a run's clips; steps with equal options share it."""

    width: int = Field(16, ge=1, le=1024, description="Channels of the first layer.")
    steps: int = Field(1500, ge=1, description="Optimiser steps.")
    batch: int = Field(16, ge=2, description="Clips per step, half of them damaged.")
    lr: float = Field(5e-3, gt=0)
    seed: int = Field(0, description="Of the weights, the order of clips and what damages them.")


@hookimpl
def reward() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="shapes",
        options=ShapesRewardOptions,
        load="dit_compress_plugins.reward_shapes.reward:ShapesReward",
        revision=2,
        summary="a 3D CNN trained on real and damaged clips of the world of moving shapes",
    )
