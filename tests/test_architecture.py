"""docs/architecture.md: its picture is the contract of layers, its walks name functions that are there."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
ENGINE = ROOT / "dit_compress"


def layers() -> list[list[str]]:
    """The layers of the contract, from the top down; what stands side by side in one list."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (contract,) = (each for each in contracts if each["type"] == "layers")
    return [layer.split(" | ") for layer in contract["layers"]]


def line_of(room: str) -> str:
    """What a room is for: the first line of its docstring, up to its first full stop."""
    file = ENGINE / room / "__init__.py"
    text = ast.get_docstring(ast.parse((file if file.is_file() else ENGINE / f"{room}.py").read_text("utf-8"))) or ""
    return text.partition("\n")[0].partition(". ")[0].rstrip(".")


def picture() -> str:
    """The layers as they are drawn on the page."""
    rows = [
        (f"{'─' if place else ' '} {room}", line_of(room)) for layer in layers() for place, room in enumerate(layer)
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {line}" for name, line in rows)


def test_the_picture_is_drawn_from_the_contract() -> None:
    assert f"```text\n{picture()}\n```" in PAGE, f"put this into docs/architecture.md:\n{picture()}"


def test_every_room_is_in_a_layer_and_no_module_stands_outside() -> None:
    rooms = {path.parent.name for path in ENGINE.glob("*/__init__.py")}
    assert rooms | {"hooks", "__main__"} == {room for layer in layers() for room in layer}
    assert {path.stem for path in ENGINE.glob("*.py")} == {"__init__", "__main__", "hooks"}


WALKS = re.findall(r"^\d+\. `([\w.]+)`", PAGE, re.MULTILINE)


@pytest.mark.parametrize("step", WALKS)
def test_the_walks_name_functions_that_are_there(step: str) -> None:
    """``room.module.function`` or ``room.module.Class.method``, below ``dit_compress``."""
    names = step.split(".")
    for cut in range(len(names) - 1, 0, -1):
        if (ENGINE / "/".join(names[:cut])).with_suffix(".py").is_file():
            found = importlib.import_module("dit_compress." + ".".join(names[:cut]))
            for name in names[cut:]:
                found = getattr(found, name)
            return
    raise AssertionError(f"no module of the engine begins {step}")


def test_there_are_three_walks() -> None:
    assert len(re.findall(r"^### ", PAGE, re.MULTILINE)) == 3
    assert len(WALKS) >= 20
