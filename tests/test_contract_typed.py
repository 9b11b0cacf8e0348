"""The engine asks a plugin for nothing that no type states, and names no plugin outside ``plugin/defaults.py``."""

from __future__ import annotations

import ast
from pathlib import Path

ENGINE = Path(__file__).parents[1] / "dit_compress"
SOURCES = {path.relative_to(ENGINE).as_posix(): ast.parse(path.read_text("utf-8")) for path in ENGINE.rglob("*.py")}

UNTYPED = {
    "cli/app.py": "exceptions of typer, whose classes are private",
    "core/files.py": "errors of several libraries, with or without errno",
    "export/base.py": "options of exporters that have a device, a precision and sizes, or have none",
    "export/check_early.py": "exporters that are no ExportStep",
    "export/step.py": "exporters that are no ExportStep",
    "export/rewrite/nodes.py": "nodes of torch.fx",
    "export/rewrite/norms.py": "any norm of torch or of a stranger's model",
    "model/bundle.py": "fields of our own dataclass, by the names of components",
    "plugin/registry.py": "pluggy's callers by hook, and a mark on modules of local files",
    "pruning/folder.py": "modules of diffusers and transformers",
    "recipe/document.py": "errors of PyYAML",
    "recipe/model.py": "fields of our own dataclass, by kind",
    "report/lineage.py": "values of JSON, or models of pydantic",
    "run/keys.py": "fields of our own dataclass, by the names of components",
    "structure/": "any torch module, tensor or recorded value",
    "train/parallel.py": "tensors that may be sharded",
}
"""Where an attribute is asked for by name, of what is no plugin's, with the reason."""


def untyped(tree: ast.AST) -> list[int]:
    """Lines that call ``getattr`` or ``hasattr``."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    return [call.lineno for call in calls if call.func.id in ("getattr", "hasattr")]


def reason(name: str) -> str | None:
    """The entry of the list that covers a file."""
    return next((entry for entry in UNTYPED if name == entry or (entry.endswith("/") and name.startswith(entry))), None)


def test_the_engine_asks_for_no_member_that_no_type_states() -> None:
    found = {name: lines for name, tree in SOURCES.items() if reason(name) is None and (lines := untyped(tree))}
    assert found == {}, "state the member in Plugin, in the options or in the protocol of its kind (decision 61)"


def test_the_list_of_exceptions_has_no_old_entries() -> None:
    used = {reason(name) for name, tree in SOURCES.items() if untyped(tree)}
    assert set(UNTYPED) - used == set()
