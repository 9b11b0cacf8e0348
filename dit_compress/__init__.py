"""dit-compress: turn a large video Diffusion Transformer into one that a phone can run.

import dit_compress

model = dit_compress.prune("LTX-Video/transformer", params=1e9, search="magnitude", out="pruned")
model = dit_compress.load("pruned")
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
SCHEMA = 1
"""Version of every file the toolkit writes (bundle.json, run.json, manifest.json)."""
REVISION = 1
"""Revision of the engine's results: raised when equal inputs would give other numbers."""

_PUBLIC = {
    "load": "dit_compress.pruning.folder:load",
    "prune": "dit_compress.pruning.prune:prune",
    "record": "dit_compress.structure.record:record",
    "save": "dit_compress.pruning.folder:save",
}
"""The public API: imported when it is asked for, so that ``import dit_compress`` imports no torch."""


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dit_compress' has no attribute {name!r}")
    from dit_compress.hooks import load_object

    return load_object(_PUBLIC[name])


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
