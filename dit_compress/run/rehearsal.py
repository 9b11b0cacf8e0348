"""What a rehearsal of a recipe stands on: a twin of its model, drawn clips, and the small recipe, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.core.files import whole_file, whole_folder
from dit_compress.data.clips import write_captions
from dit_compress.data.video import write_video
from dit_compress.model.twins import TWINS, model_of, write_twin
from dit_compress.recipe import document as yaml_document
from dit_compress.recipe import dump
from dit_compress.recipe.rehearsal import FRAMES, SIDE, model_folder, reads_clips, rehearsal

if TYPE_CHECKING:
    from dit_compress.plugin.registry import Registry

NUM_CLIPS = 8
_COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "white": (235, 235, 235)}
_SIDE = 20
"""Of a square, in pixels."""


def prepare(recipe: Path, out: Path, registry: Registry, twin: str | None = None) -> Path:
    """Write twin, clips and small recipe where they are not yet; return the recipe's file.

    Args:
        recipe: the recipe at full size. The folders that it names need not be there.
        out: the folder for all of it.
        registry: the plugins.
        twin: the public model, where the name of the recipe's folder does not say it.

    Raises:
        UserError: the recipe is wrong, or there is no such twin.
    """
    document = yaml_document.read(recipe)
    model, clips, small = out / "model", out / "clips", out / "recipe.yaml"
    folder = model_folder(document)
    if folder is not None:
        name = model_of(twin) if twin else _named(folder)
        if not model.exists():
            write_twin(name, model)
    elif twin:
        raise UserError(
            "the recipe names no folder of a model, so that a twin has nothing to stand in for",
            where=document.where(("model",)),
            mend="Leave out --twin",
        )
    if reads_clips(document) and not clips.exists():
        write_clips(clips)
    out.mkdir(parents=True, exist_ok=True)
    found = dump(rehearsal(document, registry, model, clips))
    with whole_file(small) as partial:
        partial.write_text(found, "utf-8")
    return small


def _named(folder: str) -> str:
    """Return the twin whose name a folder begins with; the longest."""
    own = Path(folder).name
    found = sorted((name for name in TWINS if own.lower().startswith(name.lower())), key=len)
    if not found:
        raise UserError(f"no twin has the name of the folder {own!r}", mend=f"Give --twin, one of: {', '.join(TWINS)}")
    return found[-1]


def write_clips(folder: Path) -> None:
    """Write captioned mp4 files of a square that moves: the same each time."""
    with whole_folder(folder) as partial:
        records = []
        for number in range(NUM_CLIPS):
            name, way = list(_COLOURS)[number % len(_COLOURS)], ("right", "down")[number // len(_COLOURS)]
            write_video(partial / f"{number}.mp4", _square(_COLOURS[name], across=way == "right"), fps=8)
            records.append({"file": f"{number}.mp4", "caption": f"a {name} square moves {way}"})
        write_captions(partial, records)


def _square(colour: tuple[int, int, int], *, across: bool) -> np.ndarray:
    """Draw ``[F,Y,X,3]``: a square on grey, a few pixels further in each frame."""
    video = np.full((FRAMES, SIDE, SIDE, 3), 90, np.uint8)
    for frame in range(FRAMES):
        y, x = (_SIDE, 4 * frame) if across else (4 * frame, _SIDE)
        video[frame, y : y + _SIDE, x : x + _SIDE] = colour
    return video
