"""Latency tables: seconds of each block and unit, measured here on one block of a kind, or read from a file.

A table is a JSON file: the machine, the model's axes, the latent size, and seconds per piece, so that one that
was measured on a phone can be supplied.
"""

from __future__ import annotations

import statistics
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.measure.latency import interleaved, machine
from dit_compress.model.cut import compact
from dit_compress.search.budget import Price, assemble, block_kind, classes, gates, inside
from dit_compress.structure.compact import block_axis
from dit_compress.structure.copies import deep_copy
from dit_compress.structure.tombstone import Tombstone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Axis, Kept

SCHEMA = 1
TEXT_LENGTH = 32


def measured_table(
    denoiser: Denoiser, axes: Sequence[Axis], size_THW: tuple[int, int, int], rounds: int = 7
) -> dict[str, Any]:
    """Time one call for one sample, by piece, in seconds; random weights stand in for those on the meta device.

    Of every kind of block one is made, alone in its stack, and timed as it is and with half of each axis gone,
    in turn, so that drift of the machine hits both alike. Medians of ``rounds``.
    """
    missing = [stack for stack in denoiser.structure().stacks if stack.path not in gates(axes)]
    extended = (*axes, *(block_axis(stack) for stack in missing))
    units = {axis.name: 0.0 for axis in axes if not axis.blocks}
    whole: dict[str, list[float]] = {}
    for gate in gates(extended).values():
        whole[gate.name] = [0.0] * gate.units
        for kind in classes(range(gate.units), lambda index, gate=gate: block_kind(denoiser.module, gate, index)):  # type: ignore[misc]
            block, found = _time_block(denoiser, extended, gate, kind[0], size_THW, rounds)
            for index in kind:
                whole[gate.name][index] = block
                units |= {axis.name: found[_place(axis)] for axis in inside(axes, gate, index)}
    total = _time_outside(denoiser, extended, size_THW, rounds) + sum(map(sum, whole.values()))
    ours = {gate.name: whole[gate.name] for gate in gates(axes).values()}
    return table_of(assemble(axes, total, ours, units, "seconds"), axes, size_THW, machine())


def _time_block(
    denoiser: Denoiser, axes: Sequence[Axis], gate: Axis, index: int, size_THW: tuple[int, int, int], rounds: int
) -> tuple[float, dict[str, float]]:
    """Time a block, and one unit of each of its axes, by place; the units never weigh more than the block."""
    alone: Kept = {other.name: (index if other is gate else 0,) for other in gates(axes).values()}
    calls = {"": _block_call(_variant(denoiser, axes, alone), gate, size_THW)}
    owned = inside(axes, gate, index)
    for axis in owned:
        if axis.units > 1:
            half: Kept = {axis.name: tuple(range(axis.units - axis.units // 2))}
            calls[axis.name] = _block_call(_variant(denoiser, axes, {**alone, **half}), gate, size_THW)
    seconds = interleaved(calls, rounds)
    found = {}
    for axis in owned:
        saved = [a - b for a, b in zip(seconds[""], seconds.get(axis.name, seconds[""]), strict=True)]
        found[_place(axis)] = max(0.0, statistics.median(saved) / max(1, axis.units // 2))
    block, held = statistics.median(seconds[""]), sum(found[_place(axis)] * axis.units for axis in owned)
    return block, {place: each * min(1.0, block / held) if held else each for place, each in found.items()}


def _time_outside(denoiser: Denoiser, axes: Sequence[Axis], size_THW: tuple[int, int, int], rounds: int) -> float:
    """Time a call outside every stack: that of the model with one block in each, less these blocks."""
    alone: Kept = {gate.name: (0,) for gate in gates(axes).values()}
    short = _variant(denoiser, axes, alone)
    calls = {gate.name: _block_call(short, gate, size_THW) for gate in gates(axes).values()}
    example = short.typical(1, size_THW, text_length=TEXT_LENGTH)

    @torch.no_grad()
    def call() -> object:
        return short(*example)

    seconds = interleaved({**calls, "": call}, rounds)
    return max(0.0, statistics.median(a - sum(b) for a, *b in zip(seconds.pop(""), *seconds.values(), strict=True)))


def _variant(denoiser: Denoiser, axes: Sequence[Axis], kept: Kept) -> Denoiser:
    """Prune a copy, with small random numbers for its weights."""
    variant = deep_copy(denoiser)
    compact(variant, axes, kept)
    variant.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        for tensor in (*variant.parameters(), *variant.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02)
            else:
                tensor.zero_()
    return variant


def _place(axis: Axis) -> str:
    """Return the place of an axis inside its block."""
    return axis.name.replace(axis.block_path, "", 1)


def _block_call(denoiser: Denoiser, gate: Axis, size_THW: tuple[int, int, int]) -> Callable[[], object]:
    """Return a call of the one block left in the gate's stack, on the arguments it gets in a call of the whole."""
    assert gate.blocks is not None
    there = dict(denoiser.module.named_modules())
    left = (there[path] for path in gate.blocks.blocks if path in there)
    block = next(item for item in left if not isinstance(item, Tombstone) and any(True for _ in item.parameters()))
    with _arguments(block) as taken, torch.no_grad():
        denoiser(*denoiser.typical(1, size_THW, text_length=TEXT_LENGTH))
    args, kwargs = taken[0]

    @torch.no_grad()
    def call() -> object:
        return block(*args, **kwargs)

    return call


@contextmanager
def _arguments(block: Any) -> Iterator[list[Any]]:
    taken: list[Any] = []
    handle = block.register_forward_pre_hook(
        lambda _module, args, kwargs: taken.append((args, kwargs)), with_kwargs=True
    )
    try:
        yield taken
    finally:
        handle.remove()


# ------------------------------------------------------------------ as a file


def table_of(price: Price, axes: Sequence[Axis], size_THW: Sequence[int], machine_name: str) -> dict[str, Any]:
    """Return the JSON data of a table."""
    return {
        "schema": SCHEMA,
        "machine": machine_name,
        "size": list(size_THW),
        "axes": {axis.name: axis.units for axis in axes},
        **price.as_data(),
    }


def read_table(path: Path, axes: Sequence[Axis], size_THW: Sequence[int], machine_name: str | None) -> Price:
    """Read the price in a table's file; raise a UserError where it is of another machine, size or model.

    ``machine_name``: the machine the budget is for; this one if None.
    """
    where, data = str(path), read_json(path)
    if lacking := _lacking(data):
        raise UserError(
            f"no latency table: {lacking} missing", where=where, mend="Measure one: dit-compress sensitivity --table"
        )
    need_place(data, where, size_THW, machine_name)
    here = {axis.name: axis.units for axis in axes}
    if data["axes"] != here:
        other = next(name for name in (*here, *data["axes"]) if here.get(name) != data["axes"].get(name))
        raise UserError(
            f"the table is for another model: {other} has {here.get(other, 0)} units here, "
            f"{data['axes'].get(other, 0)} there",
            where=where,
            mend="Measure it for this model, with the same levels",
        )
    return Price.from_data(data)


def need_place(data: Mapping[str, Any], where: str, size_THW: Sequence[int], machine_name: str | None) -> None:
    """Raise a UserError where a table is of another latent size or machine (than this one, if none is named)."""
    wanted = machine_name or machine()
    if data["machine"] != wanted:
        raise UserError(
            f"the table was measured on {data['machine']!r}, the budget is for {wanted!r}",
            where=where,
            mend=f"Measure it there, or say 'machine: {data['machine']}' beside 'table' if that is what is meant",
        )
    if data["size"] != list(size_THW):
        raise UserError(
            f"the table is for latents of {data['size']} (T, H, W), the recipe's video has {list(size_THW)}",
            where=where,
            mend="Measure it at this size",
        )


def _lacking(data: Any) -> str:
    """Name what a table's data lacks; empty where it is whole."""
    if not isinstance(data, dict):
        return "everything"
    wanted = {"machine": str, "size": list, "axes": dict, "fixed": int | float, "blocks": dict, "units": dict}
    gone = [key for key, kind in wanted.items() if not isinstance(data.get(key), kind)]
    if gone or data.get("unit") != "seconds":
        return ", ".join(gone) or "seconds"
    numbers = [data["fixed"], *data["units"].values(), *(each for rest in data["blocks"].values() for each in rest)]
    named = data["axes"].keys() == data["units"].keys() | data["blocks"].keys()
    return "" if named and all(isinstance(each, int | float) for each in numbers) else "a number for every axis"
