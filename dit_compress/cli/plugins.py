"""``dit-compress plugins``, ``new`` and ``schema``: what is installed, and how to add to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dit_compress.cli.options import PluginFiles, registry, show


def plugins(plugin: PluginFiles = None) -> None:
    """List the plugins, the broken ones with reason and mend."""
    found = registry(plugin)
    table = Table("kind", "name", "what", "from", box=None)
    for entry in found.entries():
        table.add_row(entry.kind, entry.plugin.name, entry.plugin.summary, f"{entry.distribution} {entry.version}")
    show(table)
    for broken in found.broken:
        typer.echo(f"broken: {broken.name} ({broken.distribution}): {broken.reason}. {broken.mend}")


def new(
    kind: Annotated[str, typer.Argument(help="exporter, granularity, distiller, latent, search or discriminator.")],
    name: Annotated[str, typer.Argument(help="Of the plugin, as recipes will say it: my-npu.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write; dit-KIND-NAME here if absent.")] = None,
) -> None:
    """Write a small package with a working plugin, and the contract of its kind as tests."""
    from dit_compress.scaffold import new_package

    folder = new_package(kind, name, out, registry(None))
    typer.echo(folder)
    typer.echo(f"Next: pip install --no-deps -e {folder}, then pytest {folder}; search it for 'Change this:'", err=True)


def schema(plugin: PluginFiles = None) -> None:
    """Print the JSON Schema of recipes, installed plugins included."""
    from dit_compress.recipe.schema import recipe_schema

    typer.echo(json.dumps(recipe_schema(registry(plugin)), indent=1))
