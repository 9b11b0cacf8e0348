"""What a step's key is made of: files that options name count by what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml

from dit_compress.files import sha256_file
from dit_compress.graph import Node, node_key, nodes
from dit_compress.hooks import File, Options, files_of, options_as_data
from dit_compress.plugins import installed
from dit_compress.recipe import load


def key(tmp_path: Path, budget: dict[str, Any]) -> tuple[str, Node]:
    recipe = {
        "model": {"use": "video_dit", "preset": "tiny"},
        "steps": [{"prune": {"use": "trilevel", "search": "magnitude", "budget": budget}}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    loaded = load(path, installed())
    node = nodes(loaded)[-1]
    return node_key(node, {"input": "0"}, loaded, ""), node


BUDGETS: dict[str, Any] = {
    "table": lambda path: {"latency": {"seconds": 1.0, "table": path}},
    "curves": lambda path: {"params": 1000, "curves": path},
}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_file_counts_by_its_content(tmp_path: Path, name: str) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text("{}")
    second.write_text("{}")
    before, node = key(tmp_path, BUDGETS[name](str(first)))
    assert key(tmp_path, BUDGETS[name](str(second)))[0] == before, "another name, the same content"
    first.write_text('{"unit": "seconds"}')
    assert key(tmp_path, BUDGETS[name](str(first)))[0] != before, "the same name, another content"
    assert str(first) in str(node.describe()), "lineage says which file it was"
    first.unlink()
    gone = key(tmp_path, BUDGETS[name](str(first)))[0]
    assert gone not in (before, key(tmp_path, BUDGETS[name](str(second)))[0])


def test_words_are_no_files(tmp_path: Path) -> None:
    assert key(tmp_path, {"params": 1000})[0] == key(tmp_path, {"params": 1000, "curves": "default"})[0]
    assert key(tmp_path, {"params": 1000})[0] != key(tmp_path, {"params": 1000, "curves": "measured"})[0]


class Inner(Options):
    table: Annotated[str | None, File()] = None


class Outer(Options):
    inner: Inner = Inner()
    notes: Annotated[str, File()] = "none"
    title: str = "x"


def test_a_plugins_own_options_may_name_files(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("[]")
    options = Outer(inner=Inner(table=str(path)), title=str(path))
    assert files_of(options) == {"inner.table": str(path), "notes": "none"}
    assert options_as_data(options, contents=True) == {
        "inner": {"table": sha256_file(path)}, "notes": "none", "title": str(path),
    }  # fmt: skip
    assert options_as_data(options)["inner"] == {"table": str(path)}
