"""dit-compress: turn a large video Diffusion Transformer into one that a phone can run.

import dit_compress

model = dit_compress.prune("LTX-Video/transformer", params=1e9, search="magnitude", out="pruned")
model = dit_compress.load("pruned")

with dit_compress.record(model) as call: ...
dit_compress.export(model, call=call, target="onnx", out="files")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.core.version import __version__

if TYPE_CHECKING:
    from dit_compress.export.recorded import export
    from dit_compress.pruning.folder import load, save
    from dit_compress.pruning.prune import prune
    from dit_compress.structure.record import record

__all__ = ["__version__", "export", "load", "prune", "record", "save"]

_PUBLIC = {
    "export": "dit_compress.export.recorded:export",
    "load": "dit_compress.pruning.folder:load",
    "prune": "dit_compress.pruning.prune:prune",
    "record": "dit_compress.structure.record:record",
    "save": "dit_compress.pruning.folder:save",
}
"""The public API: imported when it is asked for, so that ``import dit_compress`` imports no torch."""


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dit_compress' has no attribute {name!r}")
    from dit_compress.plugin.options import load_object

    return load_object(_PUBLIC[name])


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
