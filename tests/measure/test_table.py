"""Latency tables: additive over pieces, and refused where they are for something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dit_compress.core.errors import UserError
from dit_compress.measure import table
from dit_compress.measure.figure3 import axes_of
from dit_compress.measure.latency import machine
from dit_compress.measure.table import measured_table, read_table, table_of
from dit_compress.search.budget import Price
from dit_compress.structure.facts import Axis
from dit_compress.testing.models import MODELS, tiny_denoiser

SIZE = (2, 4, 4)


def everything(name: str, *levels: str) -> tuple[Any, list[Axis]]:
    denoiser = tiny_denoiser(name).to("meta")
    return denoiser, [axis for found in axes_of(denoiser, levels).values() for axis in found]


@pytest.mark.parametrize("name", MODELS)
def test_pieces_add_up_and_none_is_negative(name: str) -> None:
    denoiser, axes = everything(name, "block", "head", "ffn")
    made = measured_table(denoiser, axes, SIZE, rounds=3)
    price = Price.from_data(made)
    assert made["machine"] == machine()
    assert made["axes"] == {axis.name: axis.units for axis in axes}
    assert price.fixed >= 0
    assert all(rest >= -1e-12 for rest in price.blocks[axes[0].name])
    assert all(each >= 0 for each in price.units.values())
    assert price.of(axes, {}) > price.of(axes, {axes[0].name: (0, 1)}) > price.fixed


def test_seconds_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says: a block takes 1 s, and 0.1 s less per head and 0.005 s less per channel that is gone.

    Then a head costs 0.1, a channel 0.005, the rest of a block 1 - 2·4·0.1 - ... is what is left; the model without
    its blocks takes 0.5 s.
    """

    def clock(calls: dict[str, Any], rounds: int) -> dict[str, list[float]]:
        if any(name.startswith("block:") for name in calls):
            return {name: [1.0 if name else 1.5] * rounds for name in calls}
        gone = {"": 0.0} | {name: (2 * 0.1 if name.startswith("head") else 32 * 0.002) for name in calls if name}
        return {name: [1.0 - gone[name]] * rounds for name in calls}

    monkeypatch.setattr(table, "interleaved", clock)
    denoiser, axes = everything("video_dit", "block", "head", "ffn")
    price = Price.from_data(measured_table(denoiser, axes, SIZE))
    assert price.fixed == pytest.approx(0.5)
    assert price.units["head:transformer_blocks.1.attn2"] == pytest.approx(0.1)
    assert price.units["ffn:transformer_blocks.2.ff"] == pytest.approx(0.002)
    assert price.blocks["block:transformer_blocks"] == pytest.approx([1 - 8 * 0.1 - 64 * 0.002] * 3)
    assert price.of(axes, {}) == pytest.approx(3.5)


def test_blocks_that_may_not_go_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        table, "interleaved", lambda calls, rounds: {n: [1.0 if n else 1.0 + len(calls) - 1] * rounds for n in calls}
    )
    denoiser, axes = everything("wan", "head")
    price = Price.from_data(measured_table(denoiser, axes, SIZE))
    assert price.blocks == {}
    assert price.of(axes, {}) == pytest.approx(price.fixed + sum(4 * each for each in price.units.values()))


AXES = [Axis("head:a", "head", 4, "s", 0), Axis("ffn:a", "ffn", 8, "s", 0)]
GOOD = table_of(Price(1.0, {}, {"head:a": 0.1, "ffn:a": 0.01}, "seconds"), AXES, (2, 4, 4), "iPhone 16")


def test_a_table_of_another_machine_serves_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(GOOD))
    price = read_table(tmp_path / "t.json", AXES, (2, 4, 4), "iPhone 16")
    assert price.of(AXES, {"head:a": (0, 1)}) == pytest.approx(1.0 + 0.2 + 0.08)


@pytest.mark.parametrize(
    ("change", "size", "named", "message"),
    [
        ({}, (2, 4, 4), None, r"t.json: the table was measured on 'iPhone 16', the budget is for '.*'. Measure it"),
        ({}, (2, 4, 4), "iPhone 15", "on 'iPhone 16', the budget is for 'iPhone 15'. Measure it there, or say"),
        ({}, (4, 4, 4), "iPhone 16", r"for latents of \[2, 4, 4\] .* the recipe's video has \[4, 4, 4\]"),
        (
            {"axes": {"head:a": 6, "ffn:a": 8}}, (2, 4, 4), "iPhone 16",
            "for another model: head:a has 4 units here, 6 there. Measure it for this model",
        ),
        (
            {"axes": {"head:a": 4, "ffn:a": 8, "ffn:b": 8}, "units": {"head:a": 1, "ffn:a": 1, "ffn:b": 1}},
            (2, 4, 4), "iPhone 16", "ffn:b has 0 units here, 8 there",
        ),
        ({"units": [1, 2]}, (2, 4, 4), "iPhone 16", "no latency table: units missing"),
        ({"unit": "parameters"}, (2, 4, 4), "iPhone 16", "no latency table: seconds missing. Measure one"),
        ({"fixed": None}, (2, 4, 4), "iPhone 16", "no latency table: fixed missing. Measure one"),
        ({"units": {"head:a": "fast"}}, (2, 4, 4), "iPhone 16", "no latency table: a number for every axis missing"),
        ({"units": {"head:a": 1.0}}, (2, 4, 4), "iPhone 16", "no latency table: a number for every axis missing"),
    ],
)  # fmt: skip
def test_a_table_for_something_else_is_refused(
    tmp_path: Path, change: dict[str, Any], size: Any, named: str | None, message: str
) -> None:
    data = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    (tmp_path / "t.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "t.json", AXES, size, named)


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("[1]")
    with pytest.raises(UserError, match="no latency table"):
        read_table(tmp_path / "t.json", AXES, (2, 4, 4), None)
    with pytest.raises(UserError, match="gone.json"):
        read_table(tmp_path / "gone.json", AXES, (2, 4, 4), None)
