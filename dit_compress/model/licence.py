"""The licence that a folder of weights states: the model card's front matter, or a key of its JSON files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dit_compress.core.pipeline import CONFIG, INDEX

if TYPE_CHECKING:
    from pathlib import Path

CARD = "README.md"
_FENCE = "---"


def licence_of(folder: Path) -> str | None:
    """Return the licence that a model's or a pipeline's folder states, None where it states none.

    Looked for in the front matter of ``README.md`` (``license``; with ``other`` its ``license_name``, and
    ``license_link`` behind it), then as ``license`` in ``model_index.json`` and ``config.json``; for a component of a
    pipeline in the pipeline's folder, too. A file that can't be read states nothing, and is no error.
    """
    places = [folder, *([folder.parent] if (folder.parent / INDEX).is_file() else [])]
    for place in places:
        for stated in (_card(place / CARD), *(_json(place / name) for name in (INDEX, CONFIG))):
            if found := _licence_in(stated):
                return found
    return None


def _licence_in(stated: Any) -> str | None:
    """Return ``apache-2.0``, or ``ltxv (https://…)`` where the card names it ``other``."""
    if not isinstance(stated, dict):
        return None
    given = stated.get("license")
    names = [name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str) and name]
    if names == ["other"] and isinstance(stated.get("license_name"), str):
        names = [stated["license_name"]]
    link = stated.get("license_link")
    name = ", ".join(names)
    return f"{name} ({link})" if name and isinstance(link, str) else name or None


def _card(path: Path) -> Any:
    """Read the front matter of a model card."""
    import yaml

    try:
        lines = path.read_text("utf-8").splitlines()
        if lines[:1] != [_FENCE] or _FENCE not in lines[1:]:
            return None
        return yaml.safe_load("\n".join(lines[1 : lines.index(_FENCE, 1)]))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
