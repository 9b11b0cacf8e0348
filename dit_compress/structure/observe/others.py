"""Blocks that stand in no plain list: alone, in lists of lists; and why other lists of modules are no stacks."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_compress.structure.facts import Refusal, Stack
from dit_compress.structure.observe.blocks import (
    LISTS,
    Found,
    children,
    found_of,
    is_block,
    is_in,
    lists_in,
    streams_through,
)
from dit_compress.structure.observe.residual import alike, chained, covered
from dit_compress.structure.record import tensors_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dit_compress.structure.observe.weightless import Replica, Seen

APART = "its items are lists, whose parts the model calls itself: none can be skipped as one; give each a forward"
ALONE = "the only block of its stack: one must stay"
SILENT = "its blocks give no tensor back: let forward return what it writes"
UNSEEN = "no stream is seen through it: no block gives back what the next one gets, or its input with something added"
UNUSED = "the recorded call does not use it"
NOTHING = "no list of blocks was found through which a stream runs"


def others(replica: Replica, found: Sequence[Found], seen: dict[str, Seen]) -> tuple[list[Found], list[Refusal]]:
    """Find more stacks beside those in plain lists, and what is refused with them."""
    search = _Search(replica.module, seen, list(found), replica.claims)
    more = [*search.nested(), *search.alone()]
    refusals = [Refusal(item.stack.path, ALONE) for item in (*more, *found) if _is_alone(item.stack)]
    refusals += [Refusal(item.stack.path, APART) for item in more if item.stack.apart]
    refusals += search.unseen()
    if not search.found and not refusals:
        refusals.append(Refusal("", NOTHING))
    return more, refusals


def _is_alone(stack: Stack) -> bool:
    return stack.length == 1 and not stack.removed and stack.removable


@dataclass
class _Search:
    """found: all stacks so far."""

    module: nn.Module
    seen: dict[str, Seen]
    found: list[Found]
    claims: torch.dtype | None

    def apart(self, path: str) -> bool:
        """Tell whether a module neither holds a block, nor stands in one."""
        blocks = [block for item in self.found for block in item.stack.blocks]
        return not any(is_in(path, block) or is_in(block, path) for block in blocks)

    def nested(self) -> list[Found]:
        """Join lists of lists: one stack, where each part hands on what the next one gets; else one for each place."""
        made = []
        for path, items in lists_in(self.module):
            inner = children(items)
            lists = all(isinstance(item, LISTS) and f"{path}.{name}" not in self.seen for name, item in inner.items())
            if not lists or not self.apart(path):
                continue
            rows = [{k: f"{path}.{name}.{k}" for k in children(item)} for name, item in inner.items()]
            stacks = self._whole(path, [part for row in rows for part in row.values()]) or self._columns(path, rows)
            made += stacks
            self.found += stacks
        return made

    def _whole(self, path: str, names: list[str]) -> list[Found]:
        if not all(name in self.seen and is_block(self.module.get_submodule(name)) for name in names):
            return []
        calls = [self.seen[name] for name in names]
        passes = chained(calls)
        if not passes or not covered(passes, calls[0]):
            return []
        return [found_of(Stack(path, len(names), *passes[0], names=tuple(names)), calls, passes, self.seen)]

    def _columns(self, path: str, rows: Sequence[dict[str, str]]) -> list[Found]:
        made = []
        for key in dict.fromkeys(key for row in rows for key in row):
            names = [row[key] for row in rows if row.get(key) in self.seen]
            names = [name for name in names if is_block(self.module.get_submodule(name))]
            stream = next((_stream(self.seen[name]) for name in names), None)
            if stream is not None:
                stack = Stack(f"{path}.*.{key}", len(names), stream, None, removable=False, names=tuple(names))
                made.append(Found(stack, [self.seen[name] for name in names], ((stream, None),)))
        return made

    def alone(self) -> list[Found]:
        """Return a block outside every list, of a class that stacks have; and the only one in its list."""
        kinds = {type(self.module.get_submodule(block)) for item in self.found for block in item.stack.blocks}
        lists = dict(lists_in(self.module))
        made = []
        for path, call in self.seen.items():
            item, (owner, _, name) = self.module.get_submodule(path), path.rpartition(".")
            single = owner in lists and len(lists[owner]) == 1 and not isinstance(lists[owner], nn.Sequential)
            if not path or not (single or type(item) in kinds) or not is_block(item) or not self.apart(path):
                continue
            passes = streams_through([call], [call], [item], self.claims) or chained([call])
            if passes:
                label, names = (owner, ()) if single and name == "0" else (path, (path,))
                made.append(found_of(Stack(label, 1, *passes[0], names=names), [call], passes, self.seen))
                self.found.append(made[-1])
        return made

    def unseen(self) -> list[Refusal]:
        """Return lists of modules of one class that are no stacks, with the reason."""
        refusals = []
        for path, items in lists_in(self.module):
            inside = children(items)
            alike_ones = len(inside) > 1 and len({type(item) for item in inside.values()}) == 1
            if alike_ones and all(map(is_block, inside.values())) and self.apart(path):
                calls = [self.seen.get(f"{path}.{name}") for name in inside]
                refusals.append(Refusal(path, _reason(next(iter(inside.values())), calls)))
        return refusals


def _stream(call: Seen) -> int | str | None:
    """Return the argument that carries the stream of a part whose caller adds what it gives."""
    inputs = call.inputs()
    like = [key for key, value in inputs.items() if any(alike(value, output) for output in call.outputs().values())]
    floating = [key for key, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()]
    return next(iter([*like, *floating]), None)


def _reason(block: nn.Module, calls: Sequence[Any]) -> str:
    own = type(block).__call__
    if own is not nn.Module.__call__:
        code = inspect.unwrap(own).__code__
        where = f"{code.co_filename}:{code.co_firstlineno}"
        return f"{type(block).__name__} has a __call__ of its own ({where}), which hooks do not see: name it forward"
    known = [call for call in calls if call is not None]
    if not known:
        return UNUSED
    return UNSEEN if any(tensors_in(call.output) for call in known) else SILENT
