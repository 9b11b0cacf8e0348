"""A recipe made small, to be run through once: on a twin, on a few clips, a few steps each. Imports no torch.

What counts, sizes and lasts is bounded; what is done, in which order and by what, stays as the recipe has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.plugin import defaults
from dit_compress.recipe.document import dump, parse
from dit_compress.recipe.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.plugin.registry import Registry
    from dit_compress.recipe.document import Document
    from dit_compress.recipe.model import Recipe

FRAMES, SIDE = 9, 64
"""Of every clip: a length and a size that the VAE of each public model takes."""
MOST: Mapping[str, float] = {
    "accumulate": 1, "batch": 2, "batches": 1, "captions": 1, "checkpoint_every": 2, "critic_warmup": 1,
    "discriminator_warmup": 1, "ema": 0.2, "every": 1, "frozen_blocks": 1, "generator_every": 1, "groups": 1,
    "learnable_blocks": 1, "num_captions": 1, "num_clips": 2, "plans": 2, "rank": 4, "runs": 1, "samples": 1,
    "share_every": 1, "steps": 2, "student_every": 1, "teacher_samples": 2, "teacher_steps": 2, "warmup": 0,
}  # fmt: skip
"""Options by name, and the most that is left of them."""


def model_folder(document: Document) -> str:
    """Return the folder of the public model that a recipe begins with.

    Raises:
        UserError: its ``model`` names none.
    """
    model = document.data.get("model")
    found = (model.get("from") or model.get("path")) if isinstance(model, dict) else None
    if not isinstance(found, str):
        raise UserError(
            "the recipe's model is no folder, so that nothing could stand in for it",
            where=document.where(("model",)),
            mend="Name one: 'model: {from: LTX-Video/}'",
        )
    return found


def rehearsal(document: Document, registry: Registry, model: Path, clips: Path) -> Recipe:
    """Return the recipe with another model's folder and other clips, as few steps of each kind as show that it runs.

    Args:
        document: the recipe as it was read.
        registry: the plugins.
        model: the folder that stands in for the recipe's own, wherever it names that.
        clips: a folder of clips with captions, of ``FRAMES`` frames of ``SIDE`` pixels a side.

    Raises:
        UserError: the recipe is wrong, as :func:`~dit_compress.recipe.resolve.resolve` has it.
    """
    own = Path(model_folder(document))
    data = _with_folder(document.data, own, model)
    if "data" in data:
        data["data"] = _with_clips(data["data"], clips)
    whole = resolve(_renewed(document, data), registry)
    return resolve(parse(dump(_smaller(whole.as_data())), document.path), registry)


def _renewed(document: Document, data: dict[str, Any]) -> Document:
    return type(document)(document.path, data, document.lines, document.errors)


def _with_folder(value: Any, own: Path, other: Path) -> Any:
    """Return the data with another folder wherever it names its own."""
    if isinstance(value, dict):
        return {key: _with_folder(item, own, other) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_folder(item, own, other) for item in value]
    return str(other) if isinstance(value, str) and "/" in value and Path(value) == own else value


def _with_clips(data: Any, clips: Path) -> dict[str, Any]:
    """Return a source of the small clips; single frames stay single frames."""
    given = data if isinstance(data, dict) else {}
    kept = {name: given[name] for name in ("first_frame",) if name in given}
    frames = min(FRAMES, given["frames"]) if isinstance(given.get("frames"), int) else FRAMES
    videos = {"use": defaults.VIDEOS, "path": str(clips), "frames": frames, "size": [SIDE, SIDE], "test_fraction": 0.5}
    return {**videos, **kept}


def _smaller(value: Any) -> Any:
    """Return options that last for a few steps."""
    if isinstance(value, list):
        return [_smaller(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _bounded(key, item) for key, item in value.items()}
    if budget := found.get("budget"):
        levels = {name: defaults.REHEARSED[name] for name in budget["levels"]}
        found |= {"budget": None, "limit": None, "levels": levels}
    if found.get("use") == defaults.DISTILL and found.get("discriminator") is None:
        found |= {"discriminator": dict(defaults.REHEARSED_JUDGE), "frozen_blocks": None}
    return found


def _bounded(key: str, value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return min(value, type(value)(MOST[key])) if number and key in MOST else _smaller(value)
