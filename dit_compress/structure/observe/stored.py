"""Structures that were found before, on disk: a class that was observed once is understood at once the next time.

An entry's name is a digest of all that a structure depends on: the module's signature, the call, the source of its
classes and of what observes them, the versions of Python and torch. It is JSON with a checksum; one that can't be read
is as good as none.

``DIT_COMPRESS_CACHE`` names another folder than ``~/.cache/dit-compress`` (or that in ``XDG_CACHE_HOME``); with
``off`` nothing is stored or read.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_content, sha256_data, whole_file
from dit_compress.structure import facts
from dit_compress.structure.edits import as_ranges, from_ranges
from dit_compress.structure.record import tensors_in
from dit_compress.structure.signature import SKIPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dit_compress.structure.facts import Structure
    from dit_compress.structure.record import Call

VARIABLE = "DIT_COMPRESS_CACHE"
MOST = 200
"""Entries that are kept, the latest ones."""
WORTH_SECONDS = 0.5
"""What took less is not stored."""
DEEPEST = 3
"""Plain objects inside plain objects that are described."""
KINDS = {
    kind.__name__: kind
    for kind in (
        facts.Structure,
        facts.Stack,
        facts.Attention,
        facts.FeedForward,
        facts.Width,
        facts.Refusal,
        facts.Member,
        facts.MaskPoint,
        facts.Follow,
        facts.Gather,
        facts.Norm,
    )
}


def stored(module: nn.Module, call: Call, described: Any, find: Callable[[], Structure]) -> Structure:
    """Return the structure that was stored of such a module; else find it, and store it if that took long.

    described: the module and its call, by ``signature``.
    """
    folder = _folder()
    name = _name(module, call, described) if folder else None
    if folder is None or name is None:
        return find()
    path = folder / f"{name}.json"
    known = _read(path)
    if known is not None:
        return known
    started = time.process_time()
    found = find()
    if time.process_time() - started > WORTH_SECONDS:
        with suppress(OSError, UserError, TypeError):
            _write(path, found)
    return found


def _folder() -> Path | None:
    asked = os.environ.get(VARIABLE, "")
    if asked == "off":
        return None
    with suppress(RuntimeError):  # no home
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dit-compress"
        return (Path(asked) if asked else home) / "structure"
    return None


# ------------------------------------------------------------------ what a structure depends on


def _name(module: nn.Module, call: Call, described: Any) -> str | None:
    """Digest all that the structure depends on; None where a class has no source file."""
    kinds = {kind for owner in module.modules() for kind in type(owner).__mro__}
    kinds |= {type(value) for owner in module.modules() for value in _objects(owner)}
    try:
        sources = _sources(kinds)
    except (OSError, TypeError):
        return None
    modules, tensors, given = described
    values = [
        tensor.tolist() if not (tensor.is_meta or tensor.is_floating_point() or tensor.is_complex()) else None
        for tensor in tensors_in((call.args, call.kwargs))
    ]
    text = [
        [[path, f"{kind.__module__}.{kind.__qualname__}", hooks, text] for path, kind, hooks, text in modules],
        [[path, sorted(_described(owner))] for path, owner in module.named_modules()],
        [repr(tensors), [str(value.dtype) for value in (*module.parameters(), *module.buffers())]],
        [repr(given), [str(tensor.dtype) for tensor in tensors_in((call.args, call.kwargs))], values],
        [sources, sys.version, torch.__version__],
    ]
    return sha256_data(text)


def _objects(owner: object, depth: int = DEEPEST) -> Iterator[Any]:
    """Plain objects that a module holds, such as attention processors."""
    for name, value in vars(owner).items():
        if depth and name not in SKIPPED and hasattr(value, "__dict__") and not _is_apart(value):
            yield value
            yield from _objects(value, depth - 1)


def _is_apart(value: Any) -> bool:
    return isinstance(value, nn.Module | Tensor | type) or inspect.isroutine(value) or inspect.ismodule(value)


def _described(owner: nn.Module) -> Iterator[str]:
    """Functions that a module holds, and plain objects with their plain attributes."""
    for name, value in vars(owner).items():
        if name not in SKIPPED and (inspect.isroutine(value) or isinstance(value, type)):
            yield f"{name}: {getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    for value in _objects(owner):
        plain = {key: item for key, item in vars(value).items() if isinstance(item, bool | int | float | str | None)}
        yield f"{type(value).__qualname__} {sorted(plain.items(), key=str)}"


def _sources(kinds: set[type]) -> list[list[str]]:
    """Digest the files of the packages that classes come from, as far as they are loaded, and those that observe them.

    Of torch and the standard library the versions are enough. All loaded code outside of installed packages counts.
    Raises OSError or TypeError for a class without a file.
    """
    strangers = [kind for kind in kinds if kind.__module__.partition(".")[0] not in sys.stdlib_module_names]
    for kind in strangers:
        inspect.getfile(kind)
    packages = {kind.__module__.partition(".")[0] for kind in strangers}
    files = set(Path(facts.__file__).parent.rglob("*.py"))
    for name, loaded in list(sys.modules.items()):
        package, file = name.partition(".")[0], getattr(loaded, "__file__", None)
        if file and file.endswith(".py") and not _is_released(file):
            local = not file.startswith(_INSTALLED) and package != "dit_compress"
            if (local or package in packages) and Path(file).is_file():
                files.add(Path(file))
    return [[str(path), sha256_content(path)] for path in sorted(files)]


_INSTALLED = f"{sysconfig.get_path('purelib')}{os.sep}"
_RELEASED = (f"{Path(torch.__file__).parent}{os.sep}", f"{sysconfig.get_path('stdlib')}{os.sep}")


def _is_released(file: str) -> bool:
    """Whether a file belongs to torch or to Python."""
    return file.startswith(_RELEASED[0]) or (file.startswith(_RELEASED[1]) and not file.startswith(_INSTALLED))


# ------------------------------------------------------------------ files


def _read(path: Path) -> Structure | None:
    """Return an entry; None where there is none, or it is damaged."""
    try:
        data = json.loads(path.read_bytes())
        found = _from_data(data["structure"]) if data["sha256"] == sha256_data(data["structure"]) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, facts.Structure) else None


def _write(path: Path, found: Structure) -> None:
    data = _as_data(found)
    if _from_data(json.loads(json.dumps(data))) != found:
        return  # a kind of value that is not known here
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, shared=True) as partial:
        partial.write_text(json.dumps({"sha256": sha256_data(data), "structure": data}), "utf-8")
    entries = sorted(path.parent.glob("*.json"), key=lambda entry: entry.stat().st_mtime)
    for entry in entries[:-MOST]:
        entry.unlink(missing_ok=True)


def _as_data(value: Any) -> Any:
    """Facts as JSON data; raise TypeError for what they never hold."""
    if isinstance(value, np.ndarray):
        columns = value.ndim > 1 and len(as_ranges(value.T.ravel().tolist())) < len(as_ranges(value.ravel().tolist()))
        flat = (value.T if columns else value).ravel().tolist()
        return {"array": as_ranges(flat), "shape": list(value.shape), "columns": columns}
    if type(value).__name__ in KINDS and type(value) is KINDS[type(value).__name__]:
        return {"kind": type(value).__name__, **{name: _as_data(item) for name, item in vars(value).items()}}
    if isinstance(value, tuple):
        return [_as_data(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{type(value).__name__} is no fact")


def _from_data(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_from_data(item) for item in data)
    if not isinstance(data, dict):
        return data
    if "array" in data:
        flat, shape = np.array(from_ranges(data["array"]), dtype=np.int64), data["shape"]
        return np.ascontiguousarray(flat.reshape(shape[::-1]).T) if data["columns"] else flat.reshape(shape)
    return KINDS[data["kind"]](**{name: _from_data(item) for name, item in data.items() if name != "kind"})
