"""Weights as safetensors, the graph as JSON."""

from typing import Literal

from dit_compress.export import ExportOptions
from dit_compress.hooks import Plugin, hookimpl


class GraphOptions(ExportOptions):
    """precision: of weights and arithmetic."""

    precision: Literal["float32"] = "float32"


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="graph",
        options=GraphOptions,
        load="dit_stranger.export_graph.exporter:GraphExport",
        summary="safetensors and a JSON graph, executed by an interpreter",
    )
