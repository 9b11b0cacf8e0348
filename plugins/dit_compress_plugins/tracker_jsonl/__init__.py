"""Training curves as JSON lines."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl

CURVES = "curves.jsonl"


class JsonlOptions(Options):
    """The interval of writing."""

    every: int = Field(1, ge=1, description="Steps between lines.")


@hookimpl
def tracker() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="jsonl",
        options=JsonlOptions,
        load="dit_compress_plugins.tracker_jsonl.tracker:JsonlTracker",
        curves=CURVES,
        summary=f"{CURVES} in the step's folder",
    )
