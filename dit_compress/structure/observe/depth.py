"""May a block be deleted, or must a tombstone keep its place? Both are tried, without weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.structure.edits import KeepBlocks
from dit_compress.structure.facts import Refusal, Stack
from dit_compress.structure.observe.probe import outputs_differ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.structure.observe.trace import Trace
    from dit_compress.structure.observe.weightless import Replica


def proven(replica: Replica, stack: Stack) -> Stack | Refusal:
    """The stack with ``deletable`` settled: deletion must equal skipping, of every other block, the ends, a few."""
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
