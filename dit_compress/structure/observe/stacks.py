"""Find the stacks of a module: lists of blocks through which streams run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_compress.structure.edits import keep_blocks
from dit_compress.structure.facts import Refusal, Stack
from dit_compress.structure.lookup import fields_of, leaves_of
from dit_compress.structure.observe.probe import outputs_differ
from dit_compress.structure.observe.residual import alike, chained, covered, main_stream, residual
from dit_compress.structure.observe.trace import FAILURES
from dit_compress.structure.observe.weightless import watch
from dit_compress.structure.tombstone import Tombstone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.structure.observe.residual import Pass
    from dit_compress.structure.observe.trace import Trace
    from dit_compress.structure.observe.weightless import Replica, Seen

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""torch's own modules that are blocks; its others are parts of one."""


@dataclass
class Found:
    """A stack, with the calls of its blocks, and the streams that pass through it."""

    stack: Stack
    calls: list[Seen] = field(repr=False)
    passes: tuple[Pass, ...] = ()

    @property
    def streams(self) -> tuple[int | str, ...]:
        """Arguments that carry streams."""
        return tuple(argument for argument, _ in self.passes)


def find_stacks(replica: Replica) -> tuple[list[Found], list[Refusal]]:
    """The outermost stacks of a module (a list inside a block belongs to that block), and what can't be shortened."""
    watched = watch(replica)
    found: list[Found] = []
    refusals: list[Refusal] = []
    for path, items in _lists(replica.module):
        if any(path.startswith(f"{item.stack.path}.") for item in found):
            continue
        item = _stack(replica, path, items, watched[0])
        if item is not None:
            block = item.stack.block(0)
            stream, output = main_stream(replica, block, item.calls[0], item.passes, watched)
            found.append(replace(item, stack=replace(item.stack, stream=stream, output=output)))
    for place, item in enumerate(found):
        if item.stack.length > 1:
            settled = proven(replica, item.stack)
            if isinstance(settled, Refusal):
                refusals.append(settled)
                found[place] = replace(item, stack=replace(item.stack, removable=False))
            else:
                found[place] = replace(item, stack=settled)
    return found, refusals


def _borrowed(stack: Stack, seen: dict[str, Seen]) -> tuple[str, ...]:
    """Parts of a block that the model calls on its own (DiT asks its first block for an embedding)."""
    found = []
    for head in stack.blocks:
        for path, call in seen.items():
            if path.startswith(f"{head}.") and any(not any(_in(head, item) for item in way) for way in call.callers):
                found.append(path if stack.names else path.removeprefix(f"{stack.path}."))
    return tuple(found)


def _in(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def _lists(module: nn.Module) -> list[tuple[str, Any]]:
    return [(path, item) for path, item in module.named_modules() if isinstance(item, LISTS) and len(item)]


def _stack(replica: Replica, path: str, items: Any, seen: dict[str, Seen]) -> Found | None:
    """The stack in a list, if every item is a block that is called and hands a stream on."""
    places = {f"{path}.{name}": item for name, item in items._modules.items() if item is not None}  # noqa: SLF001
    live = [place for place, item in places.items() if not isinstance(item, Tombstone)]
    if not live or any(place not in seen for place in places) or not all(_is_block(places[place]) for place in live):
        return None
    known = [seen[place] for place in live]
    # A tombstone hands on what it gets: the streams are seen through it.
    passes = _passes([seen[place] for place in places], known, [places[place] for place in live])
    if not passes:
        return None
    plain = isinstance(items, nn.ModuleDict) is False and live == [f"{path}.{index}" for index in range(len(items))]
    stack = Stack(path, len(known), *passes[0], names=() if plain else tuple(live), removed=len(places) - len(live))
    return _found(stack, known, passes, seen)


def _passes(all_calls: Sequence[Seen], live_calls: Sequence[Seen], blocks: Sequence[nn.Module]) -> list[Pass]:
    """The streams through blocks, by identity, else as residuals."""
    passes = chained(all_calls) if len(all_calls) > 1 else []
    if not passes or not covered(passes, live_calls[0]):
        taken = {key for item in passes for key in item}
        passes += [item for item in residual(blocks, live_calls) if item[0] not in taken and item[1] not in taken]
    return passes


def _found(stack: Stack, calls: list[Seen], passes: Sequence[Pass], seen: dict[str, Seen]) -> Found:
    """The stack with what its blocks give when skipped, what the model borrows of them, whether they write."""
    returns = () if passes[0][1] is None else skipped(calls[0], passes)
    stack = replace(stack, returns=returns, writes=any(call.writes for call in calls))
    return Found(replace(stack, borrowed=_borrowed(stack, seen)), calls, tuple(passes))


def _is_block(item: nn.Module) -> bool:
    weighs = next(item.parameters(), None) is not None
    return weighs and (isinstance(item, LAYERS) or not type(item).__module__.startswith("torch.nn"))


def skipped(call: Seen, passes: Sequence[Pass]) -> tuple[tuple[str, int | str], ...]:
    """What a skipped block gives for each of its results; see ``Skip``."""
    output = call.output
    if isinstance(output, tuple | list) and not hasattr(output, "_fields"):
        return tuple(_return(call, passes, place, value) for place, value in enumerate(output))
    whole = _whole(call, passes, "", output)
    if whole is not None:
        return (("pass", whole),)
    named = ((name, *_return(call, passes, name, value)) for name, value in fields_of(output).items())
    return tuple((f"{name}={kind}", key) for name, kind, key in named)


def _return(call: Seen, passes: Sequence[Pass], place: int | str, value: Any) -> tuple[str, int | str]:
    """What a skipped block gives for one of its results."""
    argument = next((argument for argument, output in passes if output == place), None)
    argument = _whole(call, passes, f"{place}.", value) if argument is None else argument
    if argument is not None:
        return ("pass", argument)
    like = [name for name, given in call.inputs().items() if alike(given, value)]
    return ("zeros", like[0]) if like else ("none", "")


def _whole(call: Seen, passes: Sequence[Pass], head: str, value: Any) -> int | str | None:
    """The argument that is a structure of the same class, whose parts a result hands on."""
    given: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    for key, argument in given:
        streams = {(f"{key}.{name}", f"{head}{name}") for name, _ in leaves_of(argument) if name}
        if type(argument) is type(value) and not isinstance(value, Tensor) and streams & set(passes):
            return key
    return None


def proven(replica: Replica, stack: Stack) -> Stack | Refusal:
    """The stack with ``deletable`` settled: deletion must equal skipping, of every other block, the ends, a few."""
    every = range(stack.length)
    stack = replace(stack, deletable=not stack.names)
    removals = [set(every[1::2]), {0, stack.length - 1}, {1, stack.length // 2, stack.length - 2}]
    plans = {tuple(index for index in every if index not in gone) for gone in removals} - {()}
    for kept in sorted(plans):
        skipped = _run(replica, stack, kept, tombstones=True)
        if isinstance(skipped, Exception):
            return Refusal(stack.path, f"the model does not run with a block skipped: {_words(skipped)}")
        if stack.names:
            continue
        deleted = _run(replica, stack, kept, tombstones=False)
        if isinstance(deleted, Exception) or not _same(stack, kept, skipped, deleted):
            stack = replace(stack, deletable=False)
    return stack


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else type(error).__name__


def _run(replica: Replica, stack: Stack, kept: tuple[int, ...], *, tombstones: bool) -> Trace | Exception:
    try:
        return replica.edited([keep_blocks(stack, kept, tombstones=tombstones)]).run()
    except FAILURES as error:
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
