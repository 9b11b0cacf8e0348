"""``dit-compress card``, ``push`` and ``pull``: a model card of a run, and models to and from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
BaseModel = Annotated[
    str | None, typer.Option(help="Repository that the first weights came from, ORG/NAME, for the card.")
]


def card(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="The file; README.md of the run if absent.")] = None,
    base_model: BaseModel = None,
) -> None:
    """Write a model card: what was removed, every figure, the recipe, the licence."""
    from dit_compress.core.files import need_place
    from dit_compress.report.card import write_card

    if out is not None:
        need_place(out, "file")
    typer.echo(write_card(folder, out, base_model))


def push(
    folder: RunFolder,
    repository: Annotated[str, typer.Argument(help="ORG/NAME on the Hugging Face Hub.")],
    base_model: BaseModel = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Send the result of a run to the Hub: the pipeline or bundle, exported files, the card. Needs a token."""
    from dit_compress.report.upload import upload

    typer.echo(upload(folder, repository, private=not public, base_model=base_model))


def pull(
    repository: Annotated[str, typer.Argument(help="ORG/NAME on the Hugging Face Hub.")],
    revision: Annotated[str, typer.Option(help="A branch, a tag or a commit.")] = "main",
) -> None:
    """Fetch a model from the Hub, once: recipes then name it as `model: {from: hub:ORG/NAME}`, and fetch nothing."""
    from dit_compress.core.hub import pull as fetch

    reference, folder = fetch(repository, revision)
    typer.echo(f"{reference}: {folder}")
