"""Torch-Pruning's graph beside our structure: agreement and difference by hand, a graph that fails, the table."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch_pruning

from dit_compress.cli import app as cli
from dit_compress.core.errors import UserError
from dit_compress.measure import peer
from dit_compress.measure.peer import compare
from dit_compress.structure.facts import Member
from dit_compress.testing.models import tiny_denoiser

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.structure.facts import Axis


def axes_of(denoiser: Any) -> list[Axis]:
    from planted import problem_of

    return list(problem_of(denoiser).axes)


def test_it_agrees_on_channels_and_differs_on_heads_under_rope() -> None:
    """Of the self-attention's queries and keys it takes 48 rows for 12 (RoPE), some of which are not there."""
    denoiser = tiny_denoiser("video_dit")
    axes = axes_of(denoiser)
    verdicts, why = compare(denoiser, axes)
    assert why == ""
    assert {name: verdict for name, verdict in verdicts.items() if name.startswith("ffn")} == {
        f"ffn:transformer_blocks.{index}.ff": "agrees" for index in range(3)
    }
    assert {verdicts[f"head:transformer_blocks.{index}.attn1"] for index in range(3)} == {"differs"}
    assert {verdicts[f"head:transformer_blocks.{index}.attn2"] for index in range(3)} == {"agrees"}
    assert verdicts["block:transformer_blocks"] == "can't trace"
    assert not any(value.is_meta or value.grad is not None for value in denoiser.parameters())


def test_one_entry_more_or_less_is_a_difference() -> None:
    denoiser = tiny_denoiser("video_dit")
    axis = next(axis for axis in axes_of(denoiser) if axis.level == "ffn")
    fewer = replace(axis, members=tuple(member for member in axis.members if member.dim == 0))
    other = replace(
        axis, members=tuple(Member(m.tensor, m.dim, m.indices[::-1] if m.dim else m.indices) for m in axis.members)
    )
    for changed, verdict in ((axis, "agrees"), (fewer, "differs"), (other, "differs")):
        assert compare(denoiser, [changed])[0] == {axis.name: verdict}


def test_a_graph_that_is_not_built_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: Any, **_named: Any) -> None:
        raise TypeError("no such\noperation")

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", fail)
    denoiser = tiny_denoiser("video_dit")
    verdicts, why = compare(denoiser, axes_of(denoiser))
    assert set(verdicts.values()) == {"can't trace"}
    assert why == "TypeError: no such"


def test_time_that_is_spent_leaves_the_rest_untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = tiny_denoiser("video_dit")
    graph = peer._Graph(denoiser)
    axis = next(axis for axis in axes_of(denoiser) if axis.level == "ffn")
    assert graph.verdict(axis) == "agrees"
    assert 0 < graph.left < peer.PATIENCE_S
    graph.left = 0.0
    assert graph.verdict(axis) == "can't trace"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"needs the package 'torch_pruning'. Run pip install .dit-compress\[pruning\]"):
        compare(tiny_denoiser("video_dit"), [])


def test_inspect_prints_counts_by_row_and_in_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_denoiser("ltx").module.save_pretrained(tmp_path / "whole")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["dit-compress", "inspect", str(tmp_path / "whole"), "--peer"])
    cli.main()
    printed = capsys.readouterr().out
    assert "\ntorch-pruning: agrees 9, can't trace 1\n" in printed.replace(" \n", "\n").replace("  ", "")
    rows = [line.split() for line in printed.splitlines()]
    assert {row[1]: " ".join(row[7:]) for row in rows if row[1:2] in (["head"], ["ffn"], ["block"])} == {
        "block": "can't trace 1",
        "head": "agrees 3",
        "ffn": "agrees 3",
    }
