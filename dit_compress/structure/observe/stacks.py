"""Find the stacks of a module: lists of blocks through which streams run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_compress.structure.facts import Refusal, Stack
from dit_compress.structure.observe.depth import proven
from dit_compress.structure.observe.residual import alike, chained, covered, main_stream, residual
from dit_compress.structure.observe.watch import watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.structure.observe.residual import Pass
    from dit_compress.structure.observe.watch import Seen
    from dit_compress.structure.observe.weightless import Replica

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
    """What a skipped block gives for one of its outputs."""
    for argument, output in passes:
        if output == place:
            return ("pass", argument)
    value = calls[0].outputs()[place]
    if not isinstance(value, Tensor):
        return ("none", "")
    like = [name for name, given in calls[0].inputs().items() if alike(given, value)]
    return ("zeros", like[0]) if like else ("none", "")
