"""Blocks and their streams: what counts as a block, what passes through it, what it gives when it is skipped."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_compress.structure.lookup import fields_of, leaves_of
from dit_compress.structure.observe.residual import alike, chained, covered, residual

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dit_compress.structure.facts import Stack
    from dit_compress.structure.observe.residual import Pass
    from dit_compress.structure.observe.weightless import Seen

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""torch's own modules that are blocks; its others are parts of one."""


def lists_in(module: nn.Module) -> list[tuple[str, Any]]:
    """Return every list of modules that is not empty, outer ones first."""
    return [(path, item) for path, item in module.named_modules() if isinstance(item, LISTS) and len(item)]


def children(items: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a list, by name; places left empty (None) are passed over."""
    return {name: item for name, item in items._modules.items() if item is not None}  # noqa: SLF001


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


def streams_through(
    all_calls: Sequence[Seen], live_calls: Sequence[Seen], blocks: Sequence[nn.Module], claims: torch.dtype | None
) -> list[Pass]:
    """Return the streams through blocks, by identity, else as residuals. claims: as a ``Replica`` takes it."""
    passes = chained(all_calls) if len(all_calls) > 1 else []
    if not passes or not covered(passes, live_calls[0]):
        taken = {key for item in passes for key in item}
        passes += [
            item for item in residual(blocks, live_calls, claims) if item[0] not in taken and item[1] not in taken
        ]
    return passes


def found_of(stack: Stack, calls: list[Seen], passes: Sequence[Pass], seen: dict[str, Seen]) -> Found:
    """Return the stack with what its blocks give when skipped, what the model borrows of them, whether they write."""
    returns = () if passes[0][1] is None else skipped(calls[0], passes)
    stack = replace(stack, returns=returns, writes=any(call.writes for call in calls))
    return Found(replace(stack, borrowed=_borrowed(stack, seen)), calls, tuple(passes))


def is_block(item: nn.Module) -> bool:
    """Tell whether a module may be one: it has weights, and is none of torch's small parts."""
    weighs = next(item.parameters(), None) is not None
    return weighs and (isinstance(item, LAYERS) or not type(item).__module__.startswith("torch.nn"))


def skipped(call: Seen, passes: Sequence[Pass]) -> tuple[tuple[str, int | str], ...]:
    """Return what a skipped block gives for each of its results; see ``Skip``."""
    output = call.output
    if isinstance(output, tuple | list) and not hasattr(output, "_fields"):
        return tuple(_return(call, passes, place, value) for place, value in enumerate(output))
    whole = _whole(call, passes, "", output)
    if whole is not None:
        return (("pass", whole),)
    named = ((name, *_return(call, passes, name, value)) for name, value in fields_of(output).items())
    return tuple((f"{name}={kind}", key) for name, kind, key in named)


def _return(call: Seen, passes: Sequence[Pass], place: int | str, value: Any) -> tuple[str, int | str]:
    """Return what a skipped block gives for one of its results."""
    argument = next((argument for argument, output in passes if output == place), None)
    argument = _whole(call, passes, f"{place}.", value) if argument is None else argument
    if argument is not None:
        return ("pass", argument)
    like = [name for name, given in call.inputs().items() if alike(given, value)]
    return ("zeros", like[0]) if like else ("none", "")


def _whole(call: Seen, passes: Sequence[Pass], head: str, value: Any) -> int | str | None:
    """Return the argument that is a structure of the same class, whose parts a result hands on."""
    given: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    for key, argument in given:
        streams = {(f"{key}.{name}", f"{head}{name}") for name, _ in leaves_of(argument) if name}
        if type(argument) is type(value) and not isinstance(value, Tensor) and streams & set(passes):
            return key
    return None


def _borrowed(stack: Stack, seen: dict[str, Seen]) -> tuple[str, ...]:
    """Return parts of a block that the model calls on its own (DiT asks its first block for an embedding)."""
    found = []
    for head in stack.blocks:
        for path, call in seen.items():
            if path.startswith(f"{head}.") and any(not any(is_in(head, item) for item in way) for way in call.callers):
                found.append(path if stack.names else path.removeprefix(f"{stack.path}."))
    return tuple(found)


def is_in(outer: str, inner: str) -> bool:
    """Tell whether a module path lies inside another, or is it."""
    return not outer or inner == outer or inner.startswith(f"{outer}.")
