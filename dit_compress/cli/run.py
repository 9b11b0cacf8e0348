"""``dit-compress run`` and ``report``: a recipe becomes finished steps, and a page about them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dit_compress.cli.options import AllowUnverified, PluginFiles, RecipePath, RunFolder, Threads, load_recipe
from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from dit_compress.recipe.model import Recipe


def run(
    recipe: RecipePath,
    out: RunFolder = None,
    only: Annotated[str | None, typer.Option(help="Run just this step (its inputs must be finished).")] = None,
    force: Annotated[list[str] | None, typer.Option(help="Run this step again; may be repeated.")] = None,
    threads: Threads = None,
    allow_unverified: AllowUnverified = False,
    yes: Annotated[bool, typer.Option("--yes", help="Run although this machine's disk or memory may not do.")] = False,
    plugin: PluginFiles = None,
) -> None:
    """Run a recipe. Finished steps are reused; after a kill the same command continues."""
    execute(recipe, out, only, force, threads, plugin, allow_unverified=allow_unverified, yes=yes)


def execute(
    recipe: Path,
    out: Path | None,
    only: str | None = None,
    force: list[str] | None = None,
    threads: int | None = None,
    plugin: list[str] | None = None,
    *,
    allow_unverified: bool = False,
    yes: bool = False,
    forks: bool = False,
) -> None:
    """Do what ``run`` says. forks: steps are forks of this process (:mod:`dit_compress.run.forks`)."""
    from dit_compress.run import torchrun
    from dit_compress.run.pipeline import Runner

    crew = torchrun.Crew() if torchrun.processes() > 1 else None
    if crew is not None and crew.rank:
        raise typer.Exit(crew.follow())
    status = 2
    try:
        parsed = load_recipe(recipe, plugin)
        folder = out or Path("runs") / parsed.name
        say = Console(stderr=True, highlight=False, soft_wrap=True).print
        runner = Runner(
            parsed,
            folder,
            threads or torchrun.default_threads(),
            plugin or (),
            frozenset(force or ()),
            lambda text: say(text, markup=False),
            crew=crew,
            yes=yes,
            forks=forks,
        )
        runner.run(only)
        status = 0
    except UserError as error:
        if crew is None:
            raise
        sys.stderr.write(f"{error}\n")  # before the others leave: torchrun ends the first process when one of them did
        raise typer.Exit(status) from None
    finally:
        if crew is not None:
            crew.dismiss(status)
    typer.echo(folder / "report.html")
    _need_proven(folder, parsed, allow_unverified=allow_unverified)


def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html and summary.json of a run anew."""
    from dit_compress.report import write_report

    typer.echo(write_report(folder))


def _need_proven(folder: Path, recipe: Recipe, *, allow_unverified: bool) -> None:
    """Exit with 1 where an export step wrote files that nothing executed, or that are below their gates."""
    from dit_compress.core.files import read_json
    from dit_compress.export.folder import UNVERIFIED, below_gates

    failed = False
    for step in recipe.steps:
        path = folder / "steps" / step.name / "files" / "manifest.json"
        manifest = read_json(path) if step.kind == "export" and path.is_file() else {}
        if manifest.get("fidelity") == "none":
            typer.echo(
                f"{step.name}: {UNVERIFIED}. Nothing executed its files; run dit-compress verify where something can"
            )
            failed |= not allow_unverified
        elif lack := below_gates([row for entry in manifest.get("artifacts", ()) for row in entry["proof"]]):
            typer.echo(
                f"{step.name}: {lack}. Choose more bits or float32, or train on: {path.parent} was written all the same"
            )
            failed = True
    if failed:
        raise typer.Exit(1)
