"""``dit-compress check`` and ``plan``: what a recipe would do, without data and weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dit_compress.cli.options import PluginFiles, RecipePath, RunFolder, load_recipe, show
from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.recipe.model import Recipe
    from dit_compress.run.plan import Planned


def check(
    recipe: RecipePath,
    deep: Annotated[bool, typer.Option("--deep", help="Plan every step, and ask the exporters, too.")] = False,
    plugin: PluginFiles = None,
) -> None:
    """Validate a recipe: every error at once, with its line. Reads no data and no weights."""
    from dit_compress.run.fit import check_needs

    parsed = load_recipe(recipe, plugin)
    if not deep:
        check_needs(parsed)
    else:
        from dit_compress.run.plan import plan as planned

        for row in planned(parsed):
            for note in row.notes:
                typer.echo(f"{row.node.name}: {note}")
    typer.echo(f"{recipe}: {len(parsed.steps)} steps, no errors")


def plan(
    recipe: RecipePath,
    out: RunFolder = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Show what training holds on each of so many processes.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Print what each step makes of the model, and which GPUs hold its training, without reading weights."""
    from dit_compress.run.fits import fits
    from dit_compress.run.plan import plan as planned

    parsed = load_recipe(recipe, plugin)
    rows = planned(parsed, processes=processes or 1)
    show(plan_table(rows, parsed, out or Path("runs") / parsed.name, processes))
    for name, fit in fits(rows, processes or 1).items():
        typer.echo(f"{name} {fit.described()}")


def plan_table(rows: Sequence[Planned], recipe: Recipe, run: Path, processes: int | None = None) -> Table:
    """Lay out one row per step: what goes in, what comes out, and whether it is there already.

    processes: adds what student and teacher hold on each of so many while they train.
    """
    from dit_compress.run.costs import costs, described, size

    columns: tuple[str, ...] = ("step", "kind", "parameters", "GFLOPs/call", "tokens", "memory", "cached", "notes")
    if processes:
        columns = (*columns[:6], f"training, each of {processes}", *columns[6:])
    figures = {row.node.name: row.after for row in rows}
    estimate = described(recipe, costs(rows, recipe, processes or 1), processes or 1)
    table = Table(*columns, title=f"{recipe.name}: {estimate}", box=None, title_justify="left")
    cached = _cached(recipe, run)
    for row in rows:
        table.add_row(
            row.node.name,
            row.node.title,
            _change(row, "params", lambda value: f"{value / 1e6:,.{1 if value > 1e8 else 2}f}M"),
            _change(row, "flops", lambda value: f"{value / 1e9:,.{0 if value > 1e12 else 3}f}"),
            _change(row, "tokens", lambda value: f"{value:,}"),
            _change(row, "memory_bytes", size),
            *([_training(row, figures, processes)] if processes else []),
            "yes" if row.node.name in cached else "no",
            "; ".join(row.notes),
        )
    return table


def _training(row: Planned, figures: Mapping[str, Mapping[str, int]], processes: int) -> str:
    """Say what student and teacher hold of each process, where all train together."""
    from dit_compress.run.costs import size, state_bytes
    from dit_compress.train.options import TrainOptions

    options = row.node.part.options if row.node.kind == "distill" else None
    if not isinstance(options, TrainOptions) or row.node.part.plugin.world != "all":
        return "–"
    return size(state_bytes(row, figures) / options.sharing(processes))


def _change(row: Planned, name: str, show: Any) -> str:
    before, after = row.before.get(name), row.after.get(name)
    if after is None:
        return "–"
    return show(after) if before in (None, after) else f"{show(before)} → {show(after)}"


def _cached(recipe: Recipe, run: Path) -> set[str]:
    """Name the steps whose finished folder has the key this recipe gives them (data prepared earlier, as found)."""
    from dit_compress.core.files import read_json
    from dit_compress.data.source import data_folder, manifest_digest
    from dit_compress.run.keys import nodes
    from dit_compress.run.pipeline import Runner, finished

    if not (run / "run.json").is_file():
        return set()
    runner = Runner(recipe, run, 1)
    manifest = read_json(run / "run.json").get("manifest", "")
    if recipe.data is not None:
        folder = data_folder(run / "cache", recipe.data)
        try:
            manifest = manifest_digest(recipe.data.build(), folder)
        except UserError:
            return set()
    return {node.name for node in nodes(recipe) if finished(run, node, runner.key(node, manifest))}
