"""The benchmark over plain modules: its reference sees what is wrong, its cells say what happened, its last line counts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from catalogue import ENTRIES
from fresh import run_fresh

import dit_compress
from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS / "plain")
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    return importlib.import_module("plain_torch")


def figures(benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *given: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["plain_torch.py", *given])
    status = benchmark.main()
    printed = capsys.readouterr().out
    return status, json.loads(printed.splitlines()[-1]), printed


def test_there_are_twenty_and_no_two_alike() -> None:
    assert len({entry.make for entry in ENTRIES.values()}) == len(ENTRIES) >= 20


@pytest.mark.parametrize("name", ENTRIES)
def test_a_module_is_made_twice_alike_and_runs(name: str) -> None:
    entry = ENTRIES[name]
    one, other = entry.module(), entry.module()
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    paths = dict(one.named_modules())
    assert all(path in paths for path in entry.stacks if "*" not in path)
    if name not in ("raises", "two_dtypes"):
        with torch.no_grad():
            one(*entry.arguments())


def test_every_cell_of_a_module_that_is_understood(
    benchmark: Any, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    def forked(command: list[str], **_given: Any) -> Any:
        """A process that has imported torch, and nothing of this package."""
        ran = run_fresh(Path(command[1]).read_text("utf-8"), *command[2:], folder=tmp_path)
        return SimpleNamespace(returncode=ran.status, stdout=ran.printed, stderr=ran.printed)

    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=forked))
    status, found, printed = figures(benchmark, monkeypatch, capsys, "refiner")
    assert (status, found.pop("seconds") >= 0) == (0, True)
    assert found == {"modules": 1, "cells": 9, "exact": 9, "refused_with_reason": 0, "silent": 0, "crashed": 0}, printed


def test_refusals_are_counted_with_their_reasons(benchmark: Any, monkeypatch: Any, capsys: Any) -> None:
    status, found, printed = figures(benchmark, monkeypatch, capsys, "silent_bag", "--cells", "blocks", "heads", "lora")
    assert (status, found["refused_with_reason"], found["cells"]) == (0, 3, 3)
    assert "refused: the blocks of 'double_blocks' can't be removed: its blocks give no tensor back" in printed


def test_a_wrong_result_and_a_traceback_are_seen(benchmark: Any, monkeypatch: Any, capsys: Any) -> None:
    prune = dit_compress.prune

    def wrong(module: Any, *, call: Any, **asked: Any) -> Any:
        if "keep" in asked:
            raise KeyError("channels")
        prune(module, call=call, **asked)
        with torch.no_grad():
            module.proj_out.bias[0] += 1e-3
        return module

    monkeypatch.setattr(dit_compress, "prune", wrong)
    status, found, printed = figures(benchmark, monkeypatch, capsys, "usual", "--cells", "blocks", "heads", "ffn")
    assert (status, found["silent"], found["crashed"]) == (1, 2, 1), printed
    assert "KeyError: 'channels' (test_plain_torch.py:" in printed


def test_a_refusal_that_changes_the_module_is_silently_wrong(benchmark: Any, monkeypatch: Any, capsys: Any) -> None:
    def refuses(module: Any, **_asked: Any) -> Any:
        with torch.no_grad():
            module.proj_out.bias += 1
        raise UserError("no")

    monkeypatch.setattr(dit_compress, "prune", refuses)
    status, found, _ = figures(benchmark, monkeypatch, capsys, "usual", "--cells", "heads")
    assert (status, found["silent"]) == (1, 1)


def test_a_refusal_without_a_reason_counts_as_a_crash(benchmark: Any, monkeypatch: Any, capsys: Any) -> None:
    def refuses(_module: Any, **_asked: Any) -> Any:
        raise UserError("granularity 'head' finds nothing to remove in this model", mend="Leave it out of 'levels'")

    monkeypatch.setattr(dit_compress, "prune", refuses)
    assert figures(benchmark, monkeypatch, capsys, "usual", "--cells", "heads")[1]["crashed"] == 1
