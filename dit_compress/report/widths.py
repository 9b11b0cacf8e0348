"""The report's table of nested widths: what each costs, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_compress.report.data import Run, Step


@dataclass(frozen=True)
class WidthTable:
    """The widths of one model as an evaluation found them, rising. rows: width → parameters, FLOPs, the metric."""

    step: Step
    metric: str | None
    rows: dict[str, dict[str, Any]]


def width_tables(run: Run) -> list[WidthTable]:
    """Return a table for each evaluation of several widths."""
    found = []
    for step in run.of_kind("evaluate"):
        widths, metric = step.metrics.get("widths"), step.metrics.get("metric")
        if isinstance(widths, dict):
            columns = {"params": "params", "flops": "flops", "value": metric}
            rows = {
                width: {column: figures.get(name) for column, name in columns.items()}
                for width, figures in widths.items()
            }
            found.append(WidthTable(step, metric, rows))
    return found
