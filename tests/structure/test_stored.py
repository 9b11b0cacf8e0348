"""Structures on disk: found again while all that they depend on is the same, and no damaged one is read."""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from plain_dits import TOKENS, Fused, Model

from dit_compress.structure.observe import stored as place
from dit_compress.structure.observe.discover import _observe
from dit_compress.structure.observe.stored import stored
from dit_compress.structure.record import Call, record
from dit_compress.structure.signature import signature

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dit_compress.structure.facts import Structure


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where entries go; whatever took any time is worth one."""
    monkeypatch.setenv("DIT_COMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(place, "WORTH_SECONDS", -1)
    return tmp_path / "structure"


def model() -> tuple[nn.Module, Call]:
    """A model in plain torch, and a call of it."""
    made = Model(Fused).eval()
    with record(made) as call, torch.no_grad():
        made(torch.ones(2, TOKENS, 4), torch.ones(2))
    return made, call


class Finder:
    """Observes, and counts how often it is asked."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        self.module, self.call, self.count = module, call, 0

    def __call__(self) -> Structure:
        self.count += 1
        return _observe(self.module, self.call)

    def stored(self) -> Structure:
        """Ask the folder first."""
        described = signature(self.module, {0: self.call.args, 1: self.call.kwargs})
        return stored(self.module, self.call, described, self)


def test_what_was_observed_is_found_again(folder: Path) -> None:
    finder, other = Finder(*model()), Finder(*model())
    found = finder.stored()
    assert other.stored() == found
    assert (finder.count, other.count, len(list(folder.iterdir()))) == (1, 0, 1)
    assert found.attentions and found.feed_forwards  # noqa: PT018 - there is something to be found


def test_other_attributes_dtypes_and_calls_are_other_entries(folder: Path) -> None:
    finders = [Finder(*model()) for _ in range(4)]
    finders[1].module.more = 3
    finders[2].module.double()
    finders[3].call = finders[3].call.map(lambda value: torch.cat([value, value]))
    for finder in finders:
        finder.stored()
    assert [finder.count for finder in finders] == [1, 1, 1, 1]
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncated", "changed", "nothing", "list"])
def test_a_damaged_entry_is_found_anew(folder: Path, damage: str) -> None:
    finder = Finder(*model())
    found = finder.stored()
    (entry,) = folder.iterdir()
    whole = entry.read_text("utf-8")
    changed = json.loads(whole)
    changed["structure"]["attentions"][0]["count"] += 1
    entry.write_text(
        {"truncated": whole[:-40], "changed": json.dumps(changed), "nothing": "", "list": "[1]"}[damage], "utf-8"
    )
    assert finder.stored() == found
    assert finder.count == 2
    assert entry.read_text("utf-8") == whole


def test_nothing_is_stored_where_it_is_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIT_COMPRESS_CACHE", "off")
    finder = Finder(*model())
    finder.stored()
    finder.stored()
    assert finder.count == 2
    assert not folder.exists()


def test_the_latest_entries_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "MOST", 2)
    for number in range(4):
        finder = Finder(*model())
        finder.module.more = number
        finder.stored()
    assert len(list(folder.iterdir())) == 2


def test_a_changed_source_is_another_entry(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path_factory.mktemp("own")
    monkeypatch.syspath_prepend(package)
    source = "from plain_dits import Fused\n\n\nclass Own(Fused):\n    pass\n"
    (package / "own_block.py").write_text(source, "utf-8")
    finders = []
    for more in ("", "# changed\n"):
        (package / "own_block.py").write_text(source + more, "utf-8")
        sys.modules.pop("own_block", None)
        importlib.invalidate_caches()
        made = Model(importlib.import_module("own_block").Own).eval()
        finders.append(Finder(made, model()[1]))
        finders[-1].stored()
    sys.modules.pop("own_block")
    assert [finder.count for finder in finders] == [1, 1]
    assert len(list(folder.iterdir())) == 2


def test_a_class_without_a_file_is_not_stored(folder: Path) -> None:
    made, call = model()
    made.__class__ = type("Nowhere", (type(made),), {"__module__": "nowhere"})
    finder = Finder(made, call)
    finder.stored()
    assert finder.count == 1
    assert not folder.exists()
