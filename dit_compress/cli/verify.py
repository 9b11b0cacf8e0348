"""``dit-compress verify``: prove an exported package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dit_compress.cli.options import AllowUnverified, PackageFolder, PluginFiles, registry, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.export.proof import Row


def verify(
    folder: PackageFolder,
    outputs: Annotated[
        Path | None, typer.Option(help="What a device computed: safetensors, <component>/<input set>/<output>.")
    ] = None,
    allow_unverified: AllowUnverified = False,
    plugin: PluginFiles = None,
) -> None:
    """Prove an exported package on its saved inputs. Needs no torch; a stronger proof than the recorded one is kept."""
    from dit_compress.export.folder import below_gates
    from dit_compress.export.verifying import verify_folder

    found = verify_folder(folder, registry(plugin), outputs)
    show(proof_table(found.rows))
    for component, reason in found.not_executed.items():
        typer.echo(f"{component}: not executed, {reason}")
    before, after = found.recorded
    typer.echo(
        f"fidelity of this proof: {found.fidelity}; recorded: {before}" + (f" → {after}" if after != before else "")
    )
    if found.not_executed and not allow_unverified:
        typer.echo("UNVERIFIED. Verify where it can be executed, or give --allow-unverified")
    if lack := below_gates([row.as_data() for row in found.rows]):
        typer.echo(lack)
    executed = all(row.verdict == "passed" for row in found.rows)
    raise typer.Exit(0 if found.passed or (allow_unverified and executed) else 1)


def proof_table(rows: Sequence[Row]) -> Table:
    """Lay out one row per execution of an exported file."""
    table = Table("component", "file", "arithmetic", "inputs", "dB", "gate", "verdict", box=None)
    for row in rows:
        decibel = f"{row.comparison.psnr_db:.1f}"
        table.add_row(
            row.component, row.kind, row.arithmetic, row.input_set, decibel, f"{row.gate_db:.0f}", row.verdict
        )
    return table
