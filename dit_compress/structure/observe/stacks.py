"""Find the stacks of a module: lists of blocks through which streams run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_compress.structure.edits import KeepBlocks
from dit_compress.structure.facts import Refusal, Stack
from dit_compress.structure.observe.probe import outputs_differ
from dit_compress.structure.observe.residual import alike, chained, covered, main_stream, residual
from dit_compress.structure.observe.weightless import watch

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
    """A stack, with the calls of its blocks."""

    stack: Stack
    calls: list[Seen] = field(repr=False)
    passes: tuple[Pass, ...] = ()

    @property
    def streams(self) -> tuple[int | str, ...]:
        """Arguments that carry streams."""
        return tuple(argument for argument, _ in self.passes)


def find_stacks(replica: Replica) -> tuple[list[Found], list[Refusal]]:
    """Find the outermost stacks (a list inside a block belongs to that block), and lists that can't be shortened."""
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
    """Find parts of a block that the model calls on its own (DiT asks its first block for an embedding)."""
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
    """Return the stack in a list, if every item is a block that is called and hands a stream on."""
    names = list(items) if isinstance(items, nn.ModuleDict) else [str(index) for index in range(len(items))]
    blocks = [replica.module.get_submodule(f"{path}.{name}") for name in names]
    calls = [seen.get(f"{path}.{name}") for name in names]
    if isinstance(items, nn.ModuleDict) or any(call is None for call in calls):
        return None
    known = [call for call in calls if call is not None]
    if not all(_is_block(block) for block in blocks):
        return None
    passes = chained(known) if len(known) > 1 else []
    if not passes or not covered(passes, known[0]):
        taken = {key for item in passes for key in item}
        passes += [item for item in residual(blocks, known) if item[0] not in taken and item[1] not in taken]
    if not passes:
        return None
    whole = passes[0][1] is None
    writes = any(call.writes for call in known)
    returns = () if whole else tuple(_return(known, passes, place) for place in known[0].outputs())
    stack = Stack(path, len(known), *passes[0], returns=returns, writes=writes)
    return Found(replace(stack, borrowed=_borrowed(stack, seen)), known, tuple(passes))


def _is_block(item: nn.Module) -> bool:
    weighs = next(item.parameters(), None) is not None
    return weighs and (isinstance(item, LAYERS) or not type(item).__module__.startswith("torch.nn"))


def _return(calls: Sequence[Seen], passes: Sequence[Pass], place: int | None) -> tuple[str, int | str]:
    """Return what a skipped block gives for one of its outputs."""
    for argument, output in passes:
        if output == place:
            return ("pass", argument)
    value = calls[0].outputs()[place]
    if not isinstance(value, Tensor):
        return ("none", "")
    like = [name for name, given in calls[0].inputs().items() if alike(given, value)]
    return ("zeros", like[0]) if like else ("none", "")


def proven(replica: Replica, stack: Stack) -> Stack | Refusal:
    """Settle ``deletable``: deletion must equal skipping, of every other block, the ends, a few."""
    every = range(stack.length)
    removals = [set(every[1::2]), {0, stack.length - 1}, {1, stack.length // 2, stack.length - 2}]
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
    """Tell whether two runs apply the same weights, in the same order, to the same inputs."""
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
