"""Options that commands share, and what each begins and ends with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dit_compress.core.limits import MAX_SEED

if TYPE_CHECKING:
    from dit_compress.plugin.registry import Registry
    from dit_compress.recipe.model import Recipe

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
PluginFiles = Annotated[
    list[str] | None, typer.Option("--plugin", help="A Python file with a plugin; may be repeated.")
]
RunFolder = Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/<name> if absent.")]
PackageFolder = Annotated[Path, typer.Argument(help="An exported package: a folder with manifest.json.")]
AllowUnverified = Annotated[
    bool, typer.Option("--allow-unverified", help="Exit 0 also where an exported file was not executed.")
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of everything that is drawn.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; results are bit for bit at an equal number.")]


def finite(value: float | None) -> float | None:
    """Refuse NaN and infinity, which no bound of typer's does."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def registry(files: list[str] | None) -> Registry:
    """Find the plugins, those of ``--plugin`` included."""
    from dit_compress.plugin.registry import use

    return use(files or ())


def load_recipe(path: Path, files: list[str] | None) -> Recipe:
    """Read a recipe, and find the plugins first."""
    from dit_compress.recipe import load

    return load(path, registry(files))


def show(table: Any) -> None:
    """Print a table, wide where no terminal limits it."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(table)
