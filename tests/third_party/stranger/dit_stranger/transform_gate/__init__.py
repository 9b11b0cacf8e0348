"""A learnable gate on every block, zero at first."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class GateOptions(Options):
    """How large a gate may grow is the training's business."""

    width: int = Field(1, ge=1, description="Numbers per gate.")


@hookimpl
def transform() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="gate",
        options=GateOptions,
        load="dit_stranger.transform_gate.gate:GateTransform",
        summary="a zero-initialised gate on every block",
    )
