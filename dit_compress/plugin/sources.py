"""Where plugins may come from: entry points of installed distributions, and files. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.plugin.kinds import GROUP

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

LOCAL = "local file"
"""The word for the distribution of a plugin given by ``--plugin``."""


@dataclass(frozen=True)
class Source:
    """Something that may hold plugins: an entry point or a file, not imported yet."""

    name: str
    distribution: str
    version: str
    load: Callable[[], ModuleType]


def entry_points() -> list[Source]:
    """Return one source per entry point: those of dit-compress first, so that nobody can displace them."""
    found, known = [], {id(None): ("unknown", "")}
    for entry in metadata.entry_points(group=GROUP):
        if id(entry.dist) not in known and entry.dist:  # its name and its version are read from a file, each time
            known[id(entry.dist)] = entry.dist.name, entry.dist.version
        found.append(Source(entry.name, *known[id(entry.dist)], entry.load))
    return sorted(found, key=lambda source: (source.distribution != "dit-compress", source.distribution, source.name))


def local_file(path: Path) -> Source:
    """Describe a file given by ``--plugin``.

    Its module has the file's stem for a name (``load="my_dit:MyDiT"``); a package's ``__init__.py``, its folder's name.
    """
    path = path.resolve()
    if path.suffix != ".py" or not path.is_file():
        raise UserError("not a Python file", where=str(path), mend="Give --plugin the .py file of a local plugin")
    name = path.parent.name if path.name == "__init__.py" else path.stem
    return Source(name, LOCAL, "", lambda: _import_file(name, path))


def _import_file(name: str, path: Path) -> ModuleType:
    known = sys.modules.get(name)
    is_local = known is not None and hasattr(known, "__dit_compress_local__")
    if not is_local and _elsewhere(name, path):
        raise ImportError(f"a module named {name!r} exists already; rename it")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} can't be imported")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__dit_compress_local__"] = True
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _elsewhere(name: str, path: Path) -> bool:
    """Tell whether a name is that of a module in another file, which the local one would hide."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return name in sys.modules
    return spec is not None and (spec.origin is None or Path(spec.origin).resolve() != path)


def importable(name: str) -> bool:
    """Tell whether there is a module of this name; imports none but its parents."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def source_digest(module: ModuleType) -> str:
    """Return the sha256 over the .py files of a module's package (or its one file), names included."""
    path = Path(module.__file__ or "")
    root = path.parent
    digest = hashlib.sha256()
    for item in sorted(root.rglob("*.py")) if path.name == "__init__.py" else [path]:
        digest.update(f"{item.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(item.read_bytes()).digest())
    return digest.hexdigest()
