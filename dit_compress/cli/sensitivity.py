"""``dit-compress sensitivity``: Figure 3 of the paper for any bundle, as a table, JSON and a figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dit_compress.cli.options import PluginFiles, registry, show
from dit_compress.core.files import need_place
from dit_compress.core.limits import MAX_CELLS
from dit_compress.plugin import defaults

if TYPE_CHECKING:
    from collections.abc import Mapping


def sensitivity(
    target: Annotated[str, typer.Argument(help="A bundle, or a run folder (its last bundle).")],
    out: Annotated[Path, typer.Option(help="Where the report and the figure go.")] = Path("sensitivity"),
    level: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A level, or one of a stack (block.refiner); may be repeated. {', '.join(defaults.LEVELS)} if absent."
        ),
    ] = None,
    share: Annotated[list[float] | None, typer.Option(help="A share to remove; may be repeated.")] = None,
    search: Annotated[
        str | None,
        typer.Option(
            help=f"Which units go; if absent {defaults.SEARCH_BY_DATA} where there is data, else {defaults.SEARCH}."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Clips on which quality is measured.")] = 64,
    size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(min=1, max=MAX_CELLS, help="Latent cells T H W; the bundle's if absent."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Paired timings per point.")] = 7,
    each: Annotated[bool, typer.Option("--each", help="Curves of each axis, for widths of each block.")] = False,
    table: Annotated[Path | None, typer.Option(help="Write a latency table of this machine, too.")] = None,
    plugin: PluginFiles = None,
) -> None:
    """Prune each level little by little; measure FLOPs, memory, latency and quality (Figure 3)."""
    from dit_compress.measure import figure3

    need_place(out, "folder")
    if table is not None:
        need_place(table, "file")
    registry(plugin)
    settings = figure3.Settings(search=search, samples=samples, size=size, rounds=rounds, each=each, table=table)
    settings = replace(settings, levels=level or settings.levels, shares=share or settings.shares)
    report = figure3.sensitivity(target, out, settings)
    show(table_of(report))
    typer.echo(out / figure3.FIGURE)


def table_of(report: Mapping[str, Any]) -> Table:
    """Lay out one row per point, the whole model first."""
    quality = report["quality"]
    name = {"flow_loss": "flow-matching loss", "drift": "drift"}[quality]
    columns = ("level", "removed", "parameters", "GFLOPs", "peak MiB", "ms/call", "times faster", name)
    table = Table(*columns, box=None, title=f"{report['model']}, latent {report['size']}", title_justify="left")
    listed = [("whole", "0", report["whole"])]
    listed += [
        (level, f"{row['removed']} of {row['of']}", row) for level, rows in report["levels"].items() for row in rows
    ]
    for level, removed, row in listed:
        table.add_row(
            level,
            removed,
            f"{row['params'] / 1e6:,.2f}M",
            f"{row['flops'] / 1e9:,.3f}",
            f"{row['peak_memory_bytes'] / 2**20:,.1f}",
            f"{row['latency_ms']:,.2f}",
            f"{row['times_faster']:.2f}",
            f"{row[quality]:.5f}",
        )
    return table
