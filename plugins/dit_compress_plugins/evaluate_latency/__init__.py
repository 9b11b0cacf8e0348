"""The time that sampling takes, against another bundle in the same run."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class LatencyOptions(Options):
    """The timed work: the DiT loop, batch by batch, guidance as one doubled batch."""

    batch: int = Field(8, ge=1)
    runs: int = Field(50, ge=3, description="Timed DiT calls; the median counts.")
    loops: int = Field(3, ge=1, description="Whole sampling loops per model, taken in turn.")


@hookimpl
def evaluate() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="latency",
        options=LatencyOptions,
        load="dit_compress_plugins.evaluate_latency.step:LatencyEvaluation",
        slots=("against",),
        summary="DiT call, sampling loop and VAE decoder, in milliseconds",
    )
