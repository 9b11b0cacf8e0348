"""``dit-compress twin``: a tiny pipeline of a public model's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_compress.cli.options import Seed


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
