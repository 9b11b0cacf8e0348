"""The streams of a stack, and which of them carries the latent.

A stream is seen by tensor identity: what one block returns is what the next one receives. Where a
model touches the stream between its blocks, it is seen as a residual instead: with the block's matmuls
replayed, the output moves exactly as the input does.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_compress.structure.lookup import argument_at, with_argument
from dit_compress.structure.observe.probe import noise_like, outputs_differ
from dit_compress.structure.observe.trace import Change, DivergedError
from dit_compress.structure.observe.weightless import Replica, Seen
from dit_compress.structure.record import map_tensors, tensors_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from dit_compress.structure.observe.trace import Trace

Pass = tuple[int | str, int | str | None]
"""A stream: the argument that brings it, the output that hands it on; inside structures by dotted names."""
RANK = 2
"""A stream has tokens and features at least."""
HOPS = 6
"""Matmuls between the latent and the first block, at most."""


def chained(calls: Sequence[Seen]) -> list[Pass]:
    """Find streams that every block hands on untouched; the last block may end some, but not all of them."""
    passes: list[Pass] = []
    for output, value in calls[0].outputs().items():
        for argument, given in calls[0].inputs().items():
            if not alike(given, value) or argument in (item[0] for item in passes):
                continue
            if all(b.inputs().get(argument) is a.outputs().get(output) for a, b in itertools.pairwise(calls)):
                passes.append((argument, output))
                break
    last = calls[-1]
    return passes if any(alike(last.inputs().get(a), last.outputs().get(o)) for a, o in passes) else []


def covered(passes: Sequence[Pass], call: Seen) -> bool:
    """Tell whether every result that looks like a stream is one."""
    handed = {output for _, output in passes}
    rest = [value for place, value in call.outputs().items() if place not in handed]
    return not any(alike(given, value) for value in rest for given in call.inputs().values())


def alike(given: Any, value: Any) -> bool:
    """Tell whether two values may be one stream: of one shape, floating, with tokens and features."""
    tensors = isinstance(given, Tensor) and isinstance(value, Tensor)
    return tensors and given.shape == value.shape and given.ndim >= RANK and given.is_floating_point()


def residual(blocks: Sequence[nn.Module], calls: Sequence[Seen], claims: torch.dtype | None) -> list[Pass]:
    """Find the streams that every block hands on as a residual: the output moves exactly as the argument does.

    claims: as a ``Replica`` takes it.
    """
    found: list[Pass] | None = None
    known: dict[Any, list[Pass]] = {}
    for block, call in zip(blocks, calls, strict=True):
        shapes = (type(block), *(tuple(parameter.shape) for parameter in block.parameters()))
        if shapes not in known:
            known[shapes] = _moves(block, call, claims)
        found = known[shapes] if found is None else [item for item in found if item in known[shapes]]
    return found or []


def _moves(block: nn.Module, call: Seen, claims: torch.dtype | None) -> list[Pass]:
    replica = Replica(block, call.call, claims=claims)
    try:
        base = replica.run()
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):
        return []
    outputs = Seen((), {}, base.output).outputs()
    passes: list[Pass] = []
    for argument, given in call.inputs().items():
        candidates = [place for place, value in outputs.items() if alike(given, value)]
        if not candidates:
            continue
        shift = noise_like(given, 4)
        try:
            moved = replica.run(base, Change(argument=("", _added(argument, shift))))
        except (DivergedError, RuntimeError, ValueError, IndexError):
            continue
        after = Seen((), {}, moved.output).outputs()
        for place in candidates:
            if torch.allclose(after[place] - outputs[place], shift, rtol=1e-6, atol=1e-8):
                passes.append((argument, place))
                break
    return passes


def _added(argument: int | str, shift: Tensor) -> Any:
    def edit(args: Any, kwargs: Any) -> tuple[Any, Any]:
        return with_argument(args, kwargs, argument, argument_at(args, kwargs, argument) + shift)

    return edit


def main_stream(
    replica: Replica, block: str, first: Seen, passes: Sequence[Pass], watched: tuple[dict[str, Seen], Trace]
) -> Pass:
    """Choose the stream that the latent reaches through the fewest matmuls; of equals the one with most tokens.

    block, first: path and call of the stack's first block. watched: the calls of all modules, and their run.
    """
    seen, base = watched
    inputs = first.inputs()
    candidates = list(passes)
    reached: dict[Any, np.ndarray] = {}
    change = Change(argument=("", _other(_latent(seen[""]))))
    for _ in range(HOPS):
        if len(candidates) == 1:
            break
        given, trace = _given(replica, block, base, change)
        touched = [p for p in candidates if outputs_differ(inputs[p[0]], given.get(p[0]))]
        if touched:
            candidates = touched
            break
        for before, after in zip(base.touches, trace.touches, strict=True):
            if before.input is not None and outputs_differ(before.input, after.input):
                reached[before.rows.key] = np.arange(np.prod(before.rows.shape))
        change = Change(rows=reached)
    return max(candidates, key=lambda p: (inputs[p[0]].shape[:-1].numel(), -list(inputs).index(p[0])))


def _given(replica: Replica, block: str, base: Trace, change: Change) -> tuple[dict[int | str, Any], Trace]:
    """Replay a block; return the arguments it gets, and the trace."""
    taken: list[Seen] = []
    module = replica.module.get_submodule(block)
    hook = module.register_forward_pre_hook(lambda _m, a, k: taken.append(Seen(a, k, None)), with_kwargs=True)
    try:
        trace = replica.run(base, change)
    finally:
        hook.remove()
    return taken[0].inputs(), trace


def _latent(call: Seen) -> int | str:
    """Return the argument most like the output in shape."""
    outputs = tensors_in(call.output)
    like = tuple(outputs[0].shape) if outputs else ()

    def score(value: Any) -> int:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return -1
        same = value.ndim == len(like)
        return sum(a == b for a, b in zip(value.shape, like, strict=True)) + 2 if same else min(value.ndim, 2)

    inputs = call.inputs()
    return max(inputs, key=lambda key: score(inputs[key]))


def _other(argument: int | str) -> Any:
    """Change the numbers in one argument."""

    def noised(value: Any) -> Any:
        return map_tensors(lambda tensor: noise_like(tensor, 5), value)

    def edit(args: Any, kwargs: Any) -> tuple[Any, Any]:
        return with_argument(args, kwargs, argument, noised(argument_at(args, kwargs, argument)))

    return edit
