"""Recipes: YAML with line numbers, validated against the installed plugins, as typed values. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dit_compress.recipe.document import read
from dit_compress.recipe.resolve import dump, resolve
from dit_compress.recipe.validate import make_part

if TYPE_CHECKING:
    from dit_compress.plugin.registry import Registry
    from dit_compress.recipe.model import Recipe

__all__ = ["dump", "load", "make_part"]


def load(path: str | Path, registry: Registry) -> Recipe:
    """Read the recipe in a file. One UserError carries everything that is wrong with it, each with file and line."""
    return resolve(read(Path(path)), registry)
