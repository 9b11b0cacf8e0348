"""A module of the engine and all it uses of the engine, as the text of one file that needs no dit-compress."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ENGINE = "dit_compress"


@cache
def flat_source(module: str) -> str:
    """Return the file's text: outside imports, then what ``module`` reaches, each after those it names.

    What is copied is what the engine runs, so that there is one implementation. Imports for type checkers only stay
    away (annotations are not evaluated).
    """
    root = _Module.read(module)
    flat = _Flat()
    for name in root.defined:
        flat.add(root, name)
    note = "# Written by dit-compress out of its own modules; licence: Apache-2.0."
    head = [note, f'"""{root.docstring}"""', "from __future__ import annotations", "\n".join(sorted(flat.imports))]
    return "\n\n".join([*head, *flat.parts]) + "\n"


class _Module:
    """One module of the engine: its top-level definitions, and where its other names come from."""

    def __init__(self, source: str) -> None:
        self.lines = source.splitlines()
        tree = ast.parse(source)
        self.docstring = ast.get_docstring(tree, clean=False) or ""
        self.defined: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, str | None]] = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.defined[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.defined |= {target.id: node for target in targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.Import):
                self.imported |= {alias.asname or alias.name: (alias.name, None) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                self.imported |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}

    @classmethod
    def read(cls, name: str) -> _Module:
        """Read a module by its dotted name, without importing it."""
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        return cls(Path(spec.origin).read_text("utf-8"))

    def text(self, node: ast.stmt) -> str:
        """Return the lines of a definition, decorators included."""
        first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))])
        return "\n".join(self.lines[first - 1 : node.end_lineno])


class _Flat:
    """The file as it grows."""

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.parts: list[str] = []
        self._owner: dict[str, _Module] = {}
        self._read: dict[str, _Module] = {}

    def add(self, module: _Module, name: str) -> None:
        """Add a definition, after what it uses; an import, where the name is one."""
        if name in module.imported:
            self._import(name, *module.imported[name])
        elif name in module.defined and self._owner.get(name) is not module:
            if name in self._owner:
                raise ValueError(f"two modules define {name!r}")
            self._owner[name] = module
            node = module.defined[name]
            for used in _names(node):
                self.add(module, used)
            self.parts.append(module.text(node))

    def _import(self, name: str, source: str, item: str | None) -> None:
        if _package(source) != ENGINE:
            renamed = f" as {name}" if name != (item or source) else ""
            self.imports.add(f"from {source} import {item}{renamed}" if item else f"import {source}{renamed}")
        elif item == name:
            if source not in self._read:
                self._read[source] = _Module.read(source)
            self.add(self._read[source], name)
        else:
            raise ValueError(f"{name!r} of {source} can't be copied: import it under its own name")


def _names(node: ast.stmt) -> list[str]:
    """List the names a definition uses, in order of appearance; raise ValueError where it imports the engine."""
    for item in ast.walk(node):
        if isinstance(item, ast.ImportFrom) and _package(item.module or "") == ENGINE:
            raise ValueError(f"an import of {item.module} inside a function can't be copied")
    return [item.id for item in ast.walk(node) if isinstance(item, ast.Name)]


def _package(module: str) -> str:
    return module.partition(".")[0]
