"""Find the stacks of a module: lists of blocks through which streams run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from dit_compress.structure.edits import keep_blocks
from dit_compress.structure.facts import Refusal, Stack
from dit_compress.structure.observe.blocks import Found, children, found_of, is_block, lists_in, streams_through
from dit_compress.structure.observe.others import others
from dit_compress.structure.observe.probe import outputs_differ
from dit_compress.structure.observe.residual import main_stream
from dit_compress.structure.observe.trace import FAILURES
from dit_compress.structure.observe.weightless import watch
from dit_compress.structure.raised import in_one_line
from dit_compress.structure.tombstone import Tombstone

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dit_compress.structure.observe.trace import Trace
    from dit_compress.structure.observe.weightless import Replica, Seen


def find_stacks(replica: Replica) -> tuple[list[Found], list[Refusal]]:
    """Find the outermost stacks (a list inside a block belongs to that block), and lists that can't be shortened."""
    watched = watch(replica)
    found: list[Found] = []
    for path, items in lists_in(replica.module):
        if not any(path.startswith(f"{item.stack.path}.") for item in found):
            found += _stack(path, items, watched[0], replica.claims)
    more, refusals = others(replica, found, watched[0])
    found = [*more, *found]
    settled = []
    for item in found:
        stack = item.stack
        if stack.removable:
            stream, output = main_stream(replica, stack.block(0), item.calls[0], item.passes, watched)
            stack = replace(stack, stream=stream, output=output)
        if stack.removable and stack.length > 1:
            proof = proven(replica, stack)
            if isinstance(proof, Refusal):
                refusals.append(proof)
            stack = replace(stack, removable=False) if isinstance(proof, Refusal) else proof
        settled.append(replace(item, stack=stack))
    return settled, refusals


def _stack(path: str, items: Any, seen: dict[str, Seen], claims: torch.dtype | None) -> list[Found]:
    """Return the stack in a list, if every item is a block that is called and hands a stream on."""
    places = {f"{path}.{name}": item for name, item in children(items).items()}
    live = [place for place, item in places.items() if not isinstance(item, Tombstone)]
    if not live or any(place not in seen for place in places) or not all(is_block(places[place]) for place in live):
        return []
    known = [seen[place] for place in live]
    # A tombstone hands on what it gets: the streams are seen through it.
    passes = streams_through([seen[place] for place in places], known, [places[place] for place in live], claims)
    if not passes:
        return []
    plain = not isinstance(items, nn.ModuleDict) and live == [f"{path}.{index}" for index in range(len(items))]
    stack = Stack(path, len(known), *passes[0], names=() if plain else tuple(live), removed=len(places) - len(live))
    return [found_of(stack, known, passes, seen)]


def proven(replica: Replica, stack: Stack) -> Stack | Refusal:
    """Settle ``deletable``: deletion must equal skipping, of every other block, the ends, a few."""
    every = range(stack.length)
    stack = replace(stack, deletable=not stack.names)
    removals = [set(every[1::2]), {0, stack.length - 1}, {1, stack.length // 2, stack.length - 2}]
    plans = {tuple(index for index in every if index not in gone) for gone in removals} - {()}
    for kept in sorted(plans):
        skipped = _run(replica, stack, kept, tombstones=True)
        if isinstance(skipped, Exception):
            return Refusal(stack.path, f"the model does not run with a block skipped: {in_one_line(skipped)}")
        if stack.names:
            continue
        deleted = _run(replica, stack, kept, tombstones=False)
        if isinstance(deleted, Exception) or not _same(stack, kept, skipped, deleted):
            stack = replace(stack, deletable=False)
    return stack


def _run(replica: Replica, stack: Stack, kept: tuple[int, ...], *, tombstones: bool) -> Trace | Exception:
    # Torch's own leaves know of no other module; a stranger's block may hold one that holds it.
    leaves = [each for each in replica.module.modules() if type(each).__module__.startswith("torch.nn.modules.")]
    shared = [each for each in leaves if not list(each.children())]
    try:
        return replica.edited([keep_blocks(stack, kept, tombstones=tombstones)], shared=shared).run()
    except FAILURES as error:
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
