"""The four panels of Figure 3: FLOPs, peak memory, speed and quality over the share removed of each level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PANELS = (
    ("flops", 1e-9, "GFLOPs per call"),
    ("peak_memory_bytes", 2.0**-20, "peak memory, MiB"),
    ("latency_ms", 1.0, "milliseconds per call"),
)
QUALITY = {"flow_loss": "flow-matching loss", "drift": "drift from the whole model"}
STYLES = (("#0b6e99", "o", "-"), ("#b5541c", "s", "--"), ("#3a7d44", "^", "-."), ("#6b4c9a", "D", ":"))


def four_panels(report: Mapping[str, Any], path: Path) -> None:
    """Draw a sensitivity report as PNG (or in the format of the path's ending)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    panels = (*PANELS, (report["quality"], 1.0, QUALITY[report["quality"]]))
    for axes, (key, scale, label) in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
        for place, (level, rows) in enumerate(report["levels"].items()):
            colour, marker, dash = STYLES[place % len(STYLES)]
            shares = [0.0, *(100 * row["removed"] / row["of"] for row in rows)]
            values = [report["whole"][key] * scale, *(row[key] * scale for row in rows)]
            axes.plot(shares, values, color=colour, marker=marker, linestyle=dash, markersize=4, label=level)
        axes.set_title(label, fontsize=10, loc="left")
        axes.set_xlabel("% removed of the level", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
