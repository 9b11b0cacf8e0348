"""A module of the engine as one file: what it reaches, in an order that runs, without the engine."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from dit_compress.structure import edits
from dit_compress.structure.files import standalone
from dit_compress.structure.files.standalone import flat_source


def top_imports(source: str) -> set[str]:
    """First words of what a file imports at its top."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_the_loader_needs_torch_and_the_standard_library_at_its_top() -> None:
    source = flat_source("dit_compress.structure.files.load_pruned")
    assert top_imports(source) - {"torch"} <= sys.stdlib_module_names
    assert "import dit_compress" not in source
    assert "from dit_compress" not in source
    compile(source, "load_pruned.py", "exec")


def test_the_loader_knows_every_edit() -> None:
    source = flat_source("dit_compress.structure.files.load_pruned")
    defined = {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    assert {kind.__name__ for kind in edits._KINDS.values()} <= defined
    assert "compile_edits" not in source, "only what is used is copied"


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    (tmp_path / "tinylib").mkdir()
    for name, text in {"__init__": "", **files}.items():
        (tmp_path / "tinylib" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(standalone, "ENGINE", "tinylib")


def test_definitions_come_before_what_is_evaluated_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(
        tmp_path,
        monkeypatch,
        root='"""Root."""\nimport math\nfrom tinylib.other import Base, times\n\nclass Child(Base):\n    value = times(LIMIT)\n\nLIMIT = 3\n',
        other="import os as unused\nfrom functools import cache\n\ndef useless(): ...\n\n@cache\ndef times(n):\n    return n * FACTOR\n\nFACTOR: int = 2\n\nclass Base: ...\n",
    )
    source = flat_source("tinylib.root")
    space: dict[str, object] = {}
    exec(source, space)
    assert space["Child"].value == 6
    assert "useless" not in source
    assert "import os" not in source


@pytest.mark.parametrize(
    ("root", "other", "message"),
    [
        ("def f():\n    from tinylib.other import g\n    return g\n", "g = 1", "inside a function can't be copied"),
        ("from tinylib.other import g as h\nx = h\n", "g = 1", "import it under its own name"),
        (
            "from tinylib.other import g\n\ndef _a(): ...\n\nx = (g, _a)\n",
            "def _a(): ...\n\ng = _a\n",
            "two modules define '_a'",
        ),
    ],
)
def test_what_can_not_be_copied_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, other: str, message: str
) -> None:
    package(tmp_path, monkeypatch, root=root, other=other)
    for name in [name for name in sys.modules if name.startswith("tinylib")]:
        del sys.modules[name]
    flat_source.cache_clear()
    with pytest.raises(ValueError, match=message):
        flat_source("tinylib.root")
