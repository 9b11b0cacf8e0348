"""A recipe made small, to be run through once: on a twin, on a few clips, a few steps each. Imports no torch.

What counts, sizes and lasts is bounded; what is done, in which order and by what, stays as the recipe has it. A model
that the recipe itself makes needs no twin; what lies on disk beside it (clips, a text encoder) is made, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.plugin import defaults
from dit_compress.plugin.options import Options, Part
from dit_compress.recipe.document import dump, parse
from dit_compress.recipe.resolve import resolve

if TYPE_CHECKING:
    from dit_compress.plugin.registry import Registry
    from dit_compress.recipe.document import Document
    from dit_compress.recipe.model import Recipe

FRAMES, SIDE = 9, 64
"""Of every clip: a length and a size that the VAE of each public model takes."""


def model_folder(document: Document) -> str | None:
    """Return the folder of the public model that a recipe begins with; None where it makes its own, or has none."""
    model = document.data.get("model")
    found = (model.get("from") or model.get("path")) if isinstance(model, dict) else None
    return found if isinstance(found, str) else None


def reads_clips(document: Document) -> bool:
    """Tell whether the recipe's clips lie on disk, so that others must stand in for them."""
    data = document.data.get("data")
    return model_folder(document) is not None or (isinstance(data, dict) and "path" in data)


def rehearsal(document: Document, registry: Registry, model: Path, clips: Path) -> Recipe:
    """Return the recipe with another model's folder and other clips, as few steps of each kind as show that it runs.

    Args:
        document: the recipe as it was read.
        registry: the plugins.
        model: the folder that stands in for the recipe's own, wherever it names that; unused where it names none.
        clips: a folder of clips with captions, of ``FRAMES`` frames of ``SIDE`` pixels a side.

    Raises:
        UserError: the recipe is wrong, as :func:`~dit_compress.recipe.resolve.resolve` has it.
    """
    own = model_folder(document)
    data = dict(document.data) if own is None else _with_folder(document.data, Path(own), model)
    if own is None:
        data |= _made_small(data)
    if "data" in data and reads_clips(document):
        data["data"] = _with_clips(data["data"], clips)
    whole = resolve(_renewed(document, data), registry)
    return resolve(parse(dump(_smaller(whole)), document.path), registry)


def _renewed(document: Document, data: dict[str, Any]) -> Document:
    return type(document)(document.path, data, document.lines, document.errors)


def _with_folder(value: Any, own: Path, other: Path) -> Any:
    """Return the data with another folder wherever it names its own."""
    if isinstance(value, dict):
        return {key: _with_folder(item, own, other) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_folder(item, own, other) for item in value]
    return str(other) if isinstance(value, str) and "/" in value and Path(value) == own else value


def _made_small(data: dict[str, Any]) -> dict[str, Any]:
    """Return the model at its plugin's default size, and a text encoder made here where the recipe reads one."""
    model, text = data.get("model"), data.get("text")
    found: dict[str, Any] = {}
    if isinstance(text, dict) and "path" in text:
        found["text"] = {"use": defaults.TINY_TEXT}
    if isinstance(model, dict):
        dropped = {defaults.PRESET, defaults.TEXT_WIDTH} if "text" in found else {defaults.PRESET}
        found["model"] = {key: value for key, value in model.items() if key not in dropped}
    return found


def _with_clips(data: Any, clips: Path) -> dict[str, Any]:
    """Return a source of the small clips; single frames stay single frames."""
    given = data if isinstance(data, dict) else {}
    kept = {name: given[name] for name in ("first_frame",) if name in given}
    frames = min(FRAMES, given["frames"]) if isinstance(given.get("frames"), int) else FRAMES
    videos = {"use": defaults.VIDEOS, "path": str(clips), "frames": frames, "size": [SIDE, SIDE], "test_fraction": 0.5}
    return {**videos, **kept}


def _smaller(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's data with options that last for a few steps."""
    data = recipe.as_data()
    shared = {kind: _bounded(data[kind], part) for kind, part in recipe.shared.items()}
    steps = [
        {**entry, step.kind: _bounded(entry[step.kind], step.part)}
        for entry, step in zip(data["steps"], recipe.steps, strict=True)
    ]
    return {**data, **shared, "steps": steps}


def _bounded(value: Any, made: Any, most: float | None = None) -> Any:
    """Return a value as it was written out, bounded.

    Args:
        value: an option's, or the options of a part.
        made: what it was written from: a part, options, or what these hold. Options that do nothing stay at
            their defaults, as ``check`` wants them.
        most: for a number, or for each of a list of numbers.
    """
    if isinstance(value, list):
        return [_bounded(item, None, most) for item in value]
    if isinstance(value, dict):
        return _bounded_options(value, made.options if isinstance(made, Part) else made)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return min(value, type(value)(most)) if number and most is not None else value


def _bounded_options(value: dict[str, Any], made: Any) -> dict[str, Any]:
    kept = {defaults.UNBOUNDED, *(made.idle if isinstance(made, Options) else ())}
    held = made if isinstance(made, dict) else dict(made) if isinstance(made, Options) else {}
    found = {
        key: item if key in kept else _bounded(item, held.get(key), defaults.BOUNDS.get(key))
        for key, item in value.items()
    }
    if isinstance(budget := found.get("budget"), dict) and "levels" in budget:
        names = [(name, name.partition(".")[0]) for name in budget["levels"]]
        if all(level in defaults.REHEARSED for _, level in names):  # what another takes, nobody knows
            levels = {name: defaults.REHEARSED[level] for name, level in names}
            found |= {"budget": None, "limit": None, "levels": levels}
    if found.get("use") == defaults.DISTILL and found.get("discriminator") is None:
        found |= defaults.REHEARSED_JUDGE
    return found
