"""``dit-compress play``: a video from an exported package alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_compress.cli.generate import write_made
from dit_compress.cli.options import PackageFolder, PluginFiles, Seed, registry
from dit_compress.core.errors import UserError
from dit_compress.core.files import need_place
from dit_compress.core.limits import MAX_PIXELS


def play(
    folder: PackageFolder,
    caption: Annotated[str | None, typer.Argument(help="What the video shows.")] = None,
    out: Annotated[Path, typer.Option(help="The mp4 to write.")] = Path("video.mp4"),
    text: Annotated[
        Path | None, typer.Option(help="Embeddings, where the text encoder is on a host: safetensors, text/<name>.")
    ] = None,
    size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(min=1, max=MAX_PIXELS, help="Frames, height, width, of the files' sizes; the first if absent."),
    ] = None,
    golden: Annotated[bool, typer.Option("--golden", help="Play the golden sample, compare every stage.")] = False,
    seed: Seed = 0,
    plugin: PluginFiles = None,
) -> None:
    """Make a video from an exported package alone: NumPy, and the runtime of its files."""
    from dit_compress.export.player import Player

    if not golden:
        need_place(out, "file")
    player = Player(folder, registry(plugin), size)
    if golden:
        gate, stages = player.manifest["sample"]["gate_db"], player.golden()
        for stage, decibel in stages.items():
            typer.echo(f"{stage}: {decibel} dB")
        raise typer.Exit(0 if min(stages.values()) >= gate else 1)
    if caption is None and text is None:
        raise UserError("nothing to show", mend="Give a caption, or --golden")
    write_made(out, player.video(caption or "", seed, text), player.manifest["video"]["fps"])
    typer.echo(out)
