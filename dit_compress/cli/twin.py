"""``dit-compress twin`` and ``try``: a tiny pipeline of a public model's classes, and a recipe run on one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_compress.cli.options import PluginFiles, RecipePath, Seed, Threads, registry
from dit_compress.cli.plan import plan as plan_recipe
from dit_compress.cli.run import execute


def twin(
    model: Annotated[str, typer.Argument(help="A public model, or a class of pipelines: WanPipeline.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    seed: Seed = 0,
) -> None:
    """Write a tiny pipeline of a public model's classes, with random weights: what a recipe can be tried on."""
    from dit_compress.core.files import need_place
    from dit_compress.model.twins import write_twin

    need_place(out, "folder")
    typer.echo(f"{out}: {write_twin(model, out, seed)}")


def rehearse(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="The folder for the twin, the clips, the small recipe and its run.")],
    twin: Annotated[str | None, typer.Option(help="The model; by the name of the recipe's folder if absent.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what each step makes of it, and do not run it.")] = False,
    threads: Threads = None,
    plugin: PluginFiles = None,
) -> None:
    """Run any recipe small, to its report: a twin of its model, drawn clips, two steps of each training. No weights."""
    from dit_compress.core.files import need_place
    from dit_compress.run.forks import forking
    from dit_compress.run.rehearsal import prepare

    if not out.exists():
        need_place(out, "folder")
    with forking() as forks:
        small = prepare(recipe, out, registry(plugin), twin)
        typer.echo(small)
        if plan:
            plan_recipe(small, out=out / "run", plugin=plugin)
        else:
            execute(small, out / "run", threads=threads, plugin=plugin, forks=forks)
