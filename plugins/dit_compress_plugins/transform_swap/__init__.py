"""Another denoiser beside the same VAE and text encoder: a pipeline's second expert in the recipe of its first."""

from typing import Annotated

from dit_compress.hooks import Options, PartField, Plugin, Slot, hookimpl


class SwapTransformOptions(Options):
    """The model that comes in the place of the input's, with its own flow and nothing of what was done to the other."""

    model: Annotated[PartField, Slot("model")]


@hookimpl
def transform() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="swap",
        options=SwapTransformOptions,
        load="dit_compress_plugins.transform_swap.transform:SwapTransform",
        summary="another denoiser beside the same VAE and text encoder: the second of two experts",
    )
