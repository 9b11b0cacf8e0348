"""Weights as safetensors, the graph as JSON."""

from dit_compress.hooks import Options, Plugin, hookimpl


class GraphOptions(Options):
    """Nothing to choose."""


@hookimpl
def export() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="graph",
        options=GraphOptions,
        load="dit_stranger.export_graph.exporter:GraphExport",
        summary="safetensors and a JSON graph, executed by an interpreter",
    )
