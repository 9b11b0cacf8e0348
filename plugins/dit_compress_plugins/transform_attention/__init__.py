"""Self-attention replaced, block by block, by one that costs less (S2DiT's LCHA and SSA, SnapGen++'s ASSA)."""

from typing import Literal

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl

Kind = Literal["full", "linconv", "stride", "global_local"]
"""What a block's attention becomes; ``full`` leaves it as it is."""


class LinearConvolutionOptions(Options):
    """LCHA: linear attention beside a depthwise 3D convolution."""

    causal: bool = Field(False, description="The convolution sees no later latent frame.")


class StrideOptions(Options):
    """SSA: attention among every so many tokens."""

    stride: tuple[int, int, int] = Field((1, 2, 2), description="Tokens from one to the next along T, H, W.")


class GlobalLocalOptions(Options):
    """ASSA: attention to coarse keys, and to neighbouring tokens."""

    blocks: int = Field(16, ge=1, description="Blocks into which the tokens are cut, for the local branch.")
    radius: int = Field(1, ge=0, description="Blocks to either side that a block sees.")


class AttentionOptions(Options):
    """Which blocks, and what their self-attention becomes."""

    blocks: dict[str, Kind] = Field(
        min_length=1, description="Path of a block, or a pattern of paths, and the kind; the first that fits counts."
    )
    linconv: LinearConvolutionOptions = Field(default_factory=LinearConvolutionOptions)
    stride: StrideOptions = Field(default_factory=StrideOptions)
    global_local: GlobalLocalOptions = Field(default_factory=GlobalLocalOptions)
    fit: int = Field(100, ge=0, description="Updates that bring each new attention nearer to the old one, by itself.")

    @property
    def reads_data(self) -> Literal["no", "if any", "yes"]:
        """Clips, where there are any: attentions are fitted and compared on them."""
        return "if any"


@hookimpl
def transform() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="attention",
        options=AttentionOptions,
        load="dit_compress_plugins.transform_attention.step:AttentionTransform",
        summary="self-attention by linear with convolution, strided, or global and local (S2DiT, SnapGen++)",
    )
