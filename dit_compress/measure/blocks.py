"""Prices of blocks that may be of several kinds: counted without weights; seconds timed in place, or from a table.

``make(layout)`` gives the denoiser with each block of the kind that a layout names. A table is a JSON file: machine,
latent size, and for each block and kind the seconds of one call for one sample, ``null`` where memory runs out.
"""

from __future__ import annotations

import math
import statistics
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.measure.latency import interleaved, machine
from dit_compress.measure.memory import LiveBytes, weight_bytes
from dit_compress.measure.table import TEXT_LENGTH, need_place
from dit_compress.model.figures import BYTES_BF16, count_parameters
from dit_compress.structure.choices import Choice, Prices, alike

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.choices import Kinds, Layout

    Make = Callable[[Layout], Denoiser]
    Size = tuple[int, int, int]

SCHEMA = 1


def choices_of(make: Make, kinds: Kinds, size_THW: Size) -> tuple[tuple[Choice, ...], Prices]:
    """Price every kind of every block without weights, and what stands outside them.

    ``make`` gives denoisers on the meta device: one for each kind, of which all blocks are that can be.
    """
    every = list(dict.fromkeys(kind for own in kinds.values() for kind in own))
    found = {kind: counted(make(alike(kinds, kind)), list(kinds), size_THW) for kind in every}
    choices = tuple(Choice(block, {kind: found[kind][0][block] for kind in own}) for block, own in kinds.items())
    return choices, next(iter(found.values()))[1]


def counted(denoiser: Denoiser, blocks: Sequence[str], size_THW: Size) -> tuple[dict[str, Prices], Prices]:
    """Count parameters, FLOPs and bytes (as in bf16) of blocks and of the rest, in one call on the meta device.

    ``working`` of a block is all that lives while it runs, but weights: what flows around it is part of that.
    """
    denoiser = denoiser.to("meta")
    share = BYTES_BF16 / next(denoiser.parameters()).element_size()
    example = denoiser.typical(1, size_THW, text_length=TEXT_LENGTH)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as flops,
        LiveBytes() as live,
        _fullest(denoiser, blocks, live) as fullest,
    ):
        denoiser(*example)
    counts, root = flops.get_flop_counts(), f"{type(denoiser).__name__}.module"
    found = {}
    for path in blocks:
        block = denoiser.module.get_submodule(path)
        own = sum(counts.get(f"{root}.{path}", {}).values())
        held = weight_bytes(block) * share
        found[path] = Prices(count_parameters(block), own, 0.0, held, fullest[path] * share)
    params, held = count_parameters(denoiser.module), weight_bytes(denoiser.module) * share
    rest = Prices(
        params - sum(prices.params for prices in found.values()),
        flops.get_total_flops() - sum(prices.flops for prices in found.values()),
        0.0,
        held - sum(prices.held for prices in found.values()),
        fullest[""] * share,
    )
    return found, rest


@contextmanager
def _fullest(denoiser: Denoiser, blocks: Sequence[str], live: LiveBytes) -> Iterator[dict[str, int]]:
    """Note the most bytes that live while each block runs, and under an empty name while none does."""
    found = dict.fromkeys(("", *blocks), 0)

    def turn(done: str) -> None:
        found[done] = max(found[done], live.peak)
        live.peak = live.now

    hooks = []
    for path in blocks:
        block = denoiser.module.get_submodule(path)
        hooks.append(block.register_forward_pre_hook(lambda _module, _args: turn("")))
        hooks.append(block.register_forward_hook(lambda _module, _args, _output, path=path: turn(path)))
    try:
        yield found
        turn("")
    finally:
        for hook in hooks:
            hook.remove()


# ------------------------------------------------------------------ seconds


def timed_table(make: Make, kinds: Kinds, size_THW: Size, rounds: int = 7) -> dict[str, Any]:
    """Time every kind of every block where it stands, in calls of the whole for one sample; medians of ``rounds``.

    Kinds take turns, so that drift of the machine hits all alike; blocks with equal parameters share one time.
    """
    every = list(dict.fromkeys(kind for own in kinds.values() for kind in own))
    models = {kind: make(alike(kinds, kind)).eval() for kind in every}
    seconds: dict[tuple[str, str], list[float]] = {}
    rests: list[float] = []
    for turn in range(rounds + 1):
        for kind, model in models.items():
            whole, found = _clocked(model, list(kinds), size_THW)
            if turn:  # the first warms up
                rests.append(whole - sum(found.values()))
                for block, each in found.items():
                    seconds.setdefault((_parameters(model, block), kind), []).append(each)
    table = {
        block: {kind: statistics.median(seconds[_parameters(models[kind], block), kind]) for kind in own}
        for block, own in kinds.items()
    }
    rest = max(0.0, statistics.median(rests))
    return {"schema": SCHEMA, "machine": machine(), "size": list(size_THW), "rest": rest, "blocks": table}


def timed_whole(models: Mapping[str, Denoiser], size_THW: Size, rounds: int = 7) -> dict[str, float]:
    """Time one call for one sample of whole models, in turn: medians of ``rounds``."""

    def call(model: Denoiser) -> Callable[[], object]:
        example = model.eval().typical(1, size_THW, text_length=TEXT_LENGTH)
        return lambda: model(*example)

    with torch.no_grad():
        seconds = interleaved({name: call(model) for name, model in models.items()}, rounds)
    return {name: statistics.median(found) for name, found in seconds.items()}


@torch.no_grad()
def _clocked(denoiser: Denoiser, blocks: Sequence[str], size_THW: Size) -> tuple[float, dict[str, float]]:
    """Return the seconds of one call, and of each block in it."""
    found, begun, hooks = dict.fromkeys(blocks, 0.0), [0.0], []

    def begin(_module: Any, _args: Any) -> None:
        begun[0] = _now()

    for path in blocks:

        def end(_module: Any, _args: Any, _output: Any, path: str = path) -> None:
            found[path] += _now() - begun[0]

        block = denoiser.module.get_submodule(path)
        hooks += [block.register_forward_pre_hook(begin), block.register_forward_hook(end)]
    example = denoiser.typical(1, size_THW, text_length=TEXT_LENGTH)
    try:
        start = _now()
        denoiser(*example)
        return _now() - start, found
    finally:
        for hook in hooks:
            hook.remove()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _parameters(denoiser: Denoiser, block: str) -> str:
    module = denoiser.module.get_submodule(block)
    return repr([(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()])


def read_layout_table(path: Path, kinds: Kinds, size_THW: Size, machine_name: str | None) -> dict[str, Any]:
    """Read a table; UserError where it is of another machine, size or model, or lacks a kind of a block."""
    where, data = str(path), read_json(path)
    mend = 'Give {"machine": …, "size": [T, H, W], "rest": seconds, "blocks": {"<block>": {"<kind>": seconds}}}'
    wanted = {"machine": str, "size": list, "rest": int | float, "blocks": dict}
    if not isinstance(data, dict) or any(not isinstance(data.get(key), kind) for key, kind in wanted.items()):
        raise UserError("no latency table of layouts", where=where, mend=mend)
    need_place(data, where, size_THW, machine_name)
    for block, own in kinds.items():
        for kind in own:
            theirs = data["blocks"].get(block)
            value = theirs.get(kind, math.nan) if isinstance(theirs, dict) else math.nan
            if value is not None and (not isinstance(value, int | float) or not 0 <= value < math.inf):
                raise UserError(
                    f"the table has no seconds of {kind!r} in {block!r}",
                    where=where,
                    mend="Measure it for this model; null says that it does not fit into the memory",
                )
    return data


def with_seconds(
    choices: Sequence[Choice], rest: Prices, table: Mapping[str, Any]
) -> tuple[tuple[Choice, ...], Prices]:
    """Add a table's seconds to prices; what does not fit into the memory takes forever."""
    found = []
    for choice in choices:
        own = table["blocks"][choice.block]
        seconds = {kind: math.inf if own[kind] is None else float(own[kind]) for kind in choice.options}
        if min(seconds.values()) == math.inf:
            raise UserError(
                f"by the table no kind of {choice.block!r} fits into the memory",
                mend="Offer other kinds, or prune first",
            )
        found.append(Choice(choice.block, {k: replace(v, seconds=seconds[k]) for k, v in choice.options.items()}))
    return tuple(found), replace(rest, seconds=float(table["rest"]))
