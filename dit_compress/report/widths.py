"""The report's table of nested widths: what each costs, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_compress.report.result import ERROR

if TYPE_CHECKING:
    from dit_compress.report.data import Run, Step


@dataclass(frozen=True)
class WidthTable:
    """The widths of one model as an evaluation found them, rising.

    names: the evaluation's metrics that are shown: the one by which models are compared comes last. rows: width →
    parameters, FLOPs, share of the widest one's parameters, each metric and its standard error, None where unknown.
    floors: what models that know less reach in the last of the metrics.
    """

    step: Step
    names: list[str]
    rows: dict[str, dict[str, Any]]
    floors: dict[str, float]


def width_tables(run: Run) -> list[WidthTable]:
    """Return a table for each evaluation of several widths."""
    found = []
    for step in run.of_kind("evaluate"):
        widths = step.metrics.get("widths")
        rows_ok = isinstance(widths, dict) and all(isinstance(row, dict) and "params" in row for row in widths.values())
        if not rows_ok or not widths:
            continue  # none, or somebody's own metric of that name
        asked = (step.metrics.get("metric"), step.metrics.get("quality"))
        names = [name for name in dict.fromkeys(asked) if name]
        columns = ("params", "flops", *names, *(f"{name}{ERROR}" for name in names))
        most = max(figures.get("params", 0) for figures in widths.values())
        rows = {
            width: {
                "share": figures["params"] / most if most else None,
                **{name: figures.get(name) for name in columns},
            }
            for width, figures in widths.items()
        }
        floors = next(iter(widths.values())).get("floors", {})
        found.append(WidthTable(step, names, rows, floors))
    return found
