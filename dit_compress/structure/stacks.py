"""Find the stacks of a module: lists of blocks through which streams run.

A stream is seen by tensor identity: what one block returns is what the next one receives. Where a
model touches the stream between its blocks, it is seen as a residual instead: with the block's matmuls
replayed, the output moves exactly as the input does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_compress.structure.axes import Refusal, Stack
from dit_compress.structure.edits import KeepBlocks
from dit_compress.structure.probe import outputs_differ
from dit_compress.structure.record import Call, map_tensors, tensors_in
from dit_compress.structure.weightless import Change, DivergedError, Replica

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.structure.weightless import Trace

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
HOPS = 6
"""Matmuls between the latent and the first block, at most."""
RANK = 2
"""A stream has tokens and features at least."""
Pass = tuple[int | str, int | None]
"""A stream: the argument that brings it, the output that hands it on."""


@dataclass
class Seen:
    """The first call of a module. Tensors are held, so that their identities stay unique."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    callers: set[tuple[str, ...]] = field(default_factory=set)

    def inputs(self) -> dict[int | str, Any]:
        """Arguments by position and keyword."""
        named: dict[int | str, Any] = dict(enumerate(self.args))
        return named | dict(self.kwargs.items())

    def outputs(self) -> dict[int | None, Any]:
        """Results by position; None for a result that is no tuple."""
        if isinstance(self.output, tuple | list):
            return dict(enumerate(self.output))
        return {None: self.output}

    @property
    def call(self) -> Call:
        """The call, to be replayed."""
        return Call(self.args, self.kwargs, recorded=True)


@dataclass
class Found:
    """A stack, with the calls of its blocks."""

    stack: Stack
    calls: list[Seen] = field(repr=False)
    passes: tuple[Pass, ...] = ()

    @property
    def streams(self) -> tuple[int | str, ...]:
        """Arguments that carry streams."""
        return tuple(argument for argument, _ in self.passes)


def find_stacks(replica: Replica) -> tuple[list[Found], list[Refusal]]:
    """The outermost stacks of a module (a list inside a block belongs to that block), and what can't be shortened."""
    seen, base = watch(replica)
    found: list[Found] = []
    refusals: list[Refusal] = []
    for path, items in _lists(replica.module):
        if any(path.startswith(f"{item.stack.path}.") for item in found):
            continue
        stack = _stack(replica, path, items, seen)
        if stack is not None:
            found.append(_main(replica, stack, base, seen))
    for place, item in enumerate(found):
        if item.stack.length > 1:
            proven = _proven(replica, item.stack)
            if isinstance(proven, Refusal):
                refusals.append(proven)
                found[place] = replace(item, stack=replace(item.stack, removable=False))
            else:
                found[place] = replace(item, stack=proven)
    return found, refusals


def watch(replica: Replica) -> tuple[dict[str, Seen], Trace]:
    """Run once and note the first call of every module, and which modules were running at any of its calls."""
    seen: dict[str, Seen] = {}
    running: list[str] = []
    callers: dict[str, set[tuple[str, ...]]] = {}
    handles = []
    for path, module in replica.module.named_modules():

        def enter(_module: nn.Module, _args: Any, path: str = path) -> None:
            callers.setdefault(path, set()).add(tuple(running))
            running.append(path)

        def leave(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            running.pop()
            seen.setdefault(path, Seen(args, kwargs, output, callers[path]))

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        base = replica.run()
    finally:
        for handle in handles:
            handle.remove()
    return seen, base


def _borrowed(stack: Stack, seen: dict[str, Seen]) -> tuple[str, ...]:
    """Parts of a block that the model calls on its own (DiT asks its first block for an embedding)."""
    found = []
    for path, call in seen.items():
        index = path.removeprefix(f"{stack.path}.").partition(".")[0]
        head = f"{stack.path}.{index}"
        if path.startswith(f"{head}.") and any(not any(_in(head, item) for item in way) for way in call.callers):
            found.append(path.removeprefix(f"{stack.path}."))
    return tuple(found)


def _in(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def _lists(module: nn.Module) -> list[tuple[str, Any]]:
    return [(path, item) for path, item in module.named_modules() if isinstance(item, LISTS) and len(item)]


def _stack(replica: Replica, path: str, items: Any, seen: dict[str, Seen]) -> Found | None:
    """The stack in a list, if every item is a block that is called and hands a stream on."""
    names = list(items) if isinstance(items, nn.ModuleDict) else [str(index) for index in range(len(items))]
    blocks = [replica.module.get_submodule(f"{path}.{name}") for name in names]
    calls = [seen.get(f"{path}.{name}") for name in names]
    if isinstance(items, nn.ModuleDict) or any(call is None for call in calls):
        return None
    known = [call for call in calls if call is not None]
    if any(next(block.parameters(), None) is None or type(block).__module__.startswith("torch.nn") for block in blocks):
        return None
    passes = _chained(known) if len(known) > 1 else []
    if not passes or not _covered(passes, known[0]):
        taken = {key for item in passes for key in item}
        passes += [item for item in _residual(blocks, known) if item[0] not in taken and item[1] not in taken]
    if not passes:
        return None
    whole = passes[0][1] is None
    returns = () if whole else tuple(_return(known, passes, place) for place in known[0].outputs())
    stack = Stack(path, len(known), *passes[0], returns=returns)
    return Found(replace(stack, borrowed=_borrowed(stack, seen)), known, tuple(passes))


def _chained(calls: Sequence[Seen]) -> list[Pass]:
    """Streams that every block hands to the next one, untouched."""
    passes: list[Pass] = []
    for output, value in calls[0].outputs().items():
        for argument, given in calls[0].inputs().items():
            if not _like(given, value) or argument in (item[0] for item in passes):
                continue
            if all(b.inputs().get(argument) is a.outputs().get(output) for a, b in itertools.pairwise(calls)):
                passes.append((argument, output))
                break
    return passes


def _covered(passes: Sequence[Pass], call: Seen) -> bool:
    """Whether every result that looks like a stream is one."""
    handed = {output for _, output in passes}
    rest = [value for place, value in call.outputs().items() if place not in handed]
    return not any(_like(given, value) for value in rest for given in call.inputs().values())


def _like(given: Any, value: Any) -> bool:
    """Whether two values may be one stream: of one shape, floating, with tokens and features."""
    tensors = isinstance(given, Tensor) and isinstance(value, Tensor)
    return tensors and given.shape == value.shape and given.ndim >= RANK and given.is_floating_point()


def _residual(blocks: Sequence[nn.Module], calls: Sequence[Seen]) -> list[Pass]:
    """Streams that every block hands on as a residual: the output moves exactly as the argument does."""
    found: list[Pass] | None = None
    known: dict[Any, list[Pass]] = {}
    for block, call in zip(blocks, calls, strict=True):
        shapes = (type(block), *(tuple(parameter.shape) for parameter in block.parameters()))
        if shapes not in known:
            known[shapes] = _moves(block, call)
        found = known[shapes] if found is None else [item for item in found if item in known[shapes]]
    return found or []


def _moves(block: nn.Module, call: Seen) -> list[Pass]:
    replica = Replica(block, call.call)
    try:
        base = replica.run()
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):
        return []
    outputs = Seen((), {}, base.output).outputs()
    passes: list[Pass] = []
    for argument, given in call.inputs().items():
        candidates = [place for place, value in outputs.items() if _like(given, value)]
        if not candidates:
            continue
        shift = torch.randn(given.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
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
        if isinstance(argument, int):
            return tuple(value + shift if place == argument else value for place, value in enumerate(args)), kwargs
        return args, {**kwargs, argument: kwargs[argument] + shift}

    return edit


def _main(replica: Replica, item: Found, base: Trace, seen: dict[str, Seen]) -> Found:
    """The stack with its main stream: the one that the latent reaches through the fewest matmuls.

    Equals are settled by the number of tokens, then by order.
    """
    candidates = list(item.passes)
    reached: dict[Any, np.ndarray] = {}
    change = Change(argument=("", _other(_latent(seen[""]))))
    for _ in range(HOPS):
        if len(candidates) == 1:
            break
        given, trace = _first_block(replica, item, base, change)
        touched = [p for p in candidates if outputs_differ(item.calls[0].inputs()[p[0]], given.get(p[0]))]
        if touched:
            candidates = touched
            break
        for before, after in zip(base.touches, trace.touches, strict=True):
            if before.input is not None and outputs_differ(before.input, after.input):
                reached[before.rows.key] = np.arange(np.prod(before.rows.shape))
        change = Change(rows=reached)
    inputs = item.calls[0].inputs()
    main = max(candidates, key=lambda p: (inputs[p[0]].shape[:-1].numel(), -list(inputs).index(p[0])))
    stack = replace(item.stack, stream=main[0], output=main[1])
    return replace(item, stack=stack)


def _first_block(replica: Replica, item: Found, base: Trace, change: Change) -> tuple[dict[int | str, Any], Trace]:
    """What the first block of a stack is given in a replay."""
    taken: list[Seen] = []
    block = replica.module.get_submodule(item.stack.block(0))
    hook = block.register_forward_pre_hook(lambda _m, a, k: taken.append(Seen(a, k, None)), with_kwargs=True)
    try:
        trace = replica.run(base, change)
    finally:
        hook.remove()
    return taken[0].inputs(), trace


def _latent(call: Seen) -> int | str:
    """The argument most like the output in shape."""
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
    """Other numbers in one argument."""

    def noise(tensor: Tensor) -> Tensor:
        made = torch.Generator().manual_seed(5)
        return torch.randn(tensor.shape, generator=made, dtype=tensor.dtype) if tensor.is_floating_point() else tensor

    def edit(args: Any, kwargs: Any) -> tuple[Any, Any]:
        if isinstance(argument, int):
            return tuple(
                map_tensors(noise, value) if place == argument else value for place, value in enumerate(args)
            ), kwargs
        return args, {**kwargs, argument: map_tensors(noise, kwargs[argument])}

    return edit


def _return(calls: Sequence[Seen], passes: Sequence[Pass], place: int | None) -> tuple[str, int | str]:
    """What a skipped block gives for one of its outputs."""
    for argument, output in passes:
        if output == place:
            return ("pass", argument)
    value = calls[0].outputs()[place]
    if not isinstance(value, Tensor):
        return ("none", "")
    alike = [name for name, given in calls[0].inputs().items() if _like(given, value)]
    return ("zeros", alike[0]) if alike else ("none", "")


# ------------------------------------------------------------------ deletion, tombstones


def _proven(replica: Replica, stack: Stack) -> Stack | Refusal:
    """The stack with ``deletable`` settled: deletion must equal skipping, for every other block, the ends, and one."""
    every = range(stack.length)
    removals = [
        set(every[1::2]),
        {0, stack.length - 1},
        *({index} for index in {1, stack.length // 2, stack.length - 2}),
    ]
    plans = {tuple(index for index in every if index not in gone) for gone in removals} - {()}
    for kept in sorted(plans):
        skipped = _run(replica, stack, kept, tombstones=True)
        if isinstance(skipped, Exception):
            return Refusal(stack.path, f"the model does not run with a block skipped: {_words(skipped)}")
        deleted = _run(replica, stack, kept, tombstones=False)
        if isinstance(deleted, Exception) or not _same(stack, kept, skipped, deleted):
            stack = replace(stack, deletable=False)
    return stack


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else type(error).__name__


def _run(replica: Replica, stack: Stack, kept: tuple[int, ...], *, tombstones: bool) -> Trace | Exception:
    edit = KeepBlocks(stack.path, kept, tombstones, stack.stream, stack.output, stack.returns, stack.borrowed)
    try:
        return replica.edited([edit]).run()
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError) as error:
        return error


def _same(stack: Stack, kept: Sequence[int], skipped: Trace, deleted: Trace) -> bool:
    """Whether two runs apply the same weights, in the same order, to the same inputs."""
    if len(skipped.touches) != len(deleted.touches) or outputs_differ(skipped.output, deleted.output):
        return False
    head = f"{stack.path}."
    for a, b in zip(skipped.touches, deleted.touches, strict=True):
        name = b.rows.key[0]
        if name.startswith(head):
            index, _, rest = name[len(head) :].partition(".")
            name = f"{head}{kept[int(index)]}.{rest}"
        if a.rows.key[0] != name or a.output.shape != b.output.shape:
            return False
        if a.input is not None and b.input is not None and outputs_differ(a.input, b.input):
            return False
    return True
