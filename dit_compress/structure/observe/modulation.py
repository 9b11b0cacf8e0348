"""Find the modulation of a module's blocks: linears that make numbers per channel out of the timestep.

By what their inputs depend on, in one weightless call for each argument: a matmul whose input differs gives other
random numbers, so that a change is followed through any number of layers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.structure.facts import Refusal
from dit_compress.structure.lookup import with_argument
from dit_compress.structure.observe.discover import replicated
from dit_compress.structure.observe.probe import outputs_differ
from dit_compress.structure.observe.trace import FAILURES, Touch, Trace
from dit_compress.structure.observe.weightless import Seen
from dit_compress.structure.raised import raised
from dit_compress.structure.record import Call
from dit_compress.structure.signature import Known, signature

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from dit_compress.structure.observe.weightless import Replica

Key = int | str
"""An argument of the module's call, by position or name; with the names inside it, where it is a structure."""
NONE = "no linear inside its blocks reads the timestep and gives the same to every token"


@dataclass(frozen=True)
class Modulation:
    """A linear in a block whose input is made of the timestep, and the same for all tokens of a sample.

    path: its own. reads: arguments of the call that its input depends on. upstream: modules through which it reads
    them, where they are all that it reads.
    """

    path: str
    reads: frozenset[Key]
    upstream: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Found:
    """All of a module's modulation; refusals: why a linear, or the whole module, has none that can be replaced."""

    linears: tuple[Modulation, ...]
    refusals: tuple[Refusal, ...] = ()

    def reasons(self) -> str:
        """Return the first refusals, in one line."""
        return "; ".join(": ".join(filter(None, (item.path, item.reason))) for item in self.refusals[:3])


def modulation(module: nn.Module, call: Call, clocks: Collection[Key] | None = None) -> Found:
    """Find the modulation from one recorded call; reads no weights.

    clocks: the arguments that carry the timestep; any with one number a sample, where they are not known.
    """
    key = signature(module, dict(enumerate((call.args, call.kwargs)))), frozenset(clocks or ())
    return _FOUND.get(key, lambda: _modulation(module, call, clocks))


def _modulation(module: nn.Module, call: Call, clocks: Collection[Key] | None) -> Found:
    try:
        replica, (stacks, _) = replicated(module, call)
        return _Dependencies(replica, clocks).found([block for item in stacks for block in item.stack.blocks])
    except FAILURES as error:
        raise UserError(
            f"its modulation can't be observed: {raised(error)}",
            where=type(module).__name__,
            mend="Record a call that the model accepts; a model whose control flow depends on values is not understood",
        ) from error


_FOUND: Known[Found] = Known(64)
"""What was found before: it depends on classes and shapes, not on weights."""


class _Dependencies:
    """reads: for each use of a weight, the arguments that its input depends on."""

    def __init__(self, replica: Replica, clocks: Collection[Key] | None) -> None:
        self.replica, self.base = replica, replica.run()
        given = Seen(replica.call.args, replica.call.kwargs, None).inputs()
        self.clocks = {key: given[key] for key in clocks} if clocks else _clocks(given)
        # Samples may share a timestep and differ in the rest that a modulation reads.
        rows = [max(value.unique().numel(), min(value.numel(), _batch(given))) for value in self.clocks.values()]
        self.most = max(rows, default=0)
        self.reads: list[set[Key]] = [set() for _ in self.base.touches]
        for key, value in given.items():
            for place in self._changed_by(key, value):
                self.reads[place].add(key)

    def _changed_by(self, key: Key, value: Any) -> list[int]:
        """Return which uses of weights have another input where one argument is another."""
        other = _other(value)
        if other is None:
            return []
        changed = copy.copy(self.replica)
        changed.call = Call(*with_argument(self.replica.call.args, self.replica.call.kwargs, key, other), recorded=True)
        try:
            return _followed(changed, self.base)
        except FAILURES:
            # Masks and positions decide on shapes; what is made of them alone is no modulation.
            if isinstance(other, Tensor) and other.is_floating_point() and key in self.clocks:
                raise
            return []

    def found(self, blocks: Sequence[str]) -> Found:
        """Return the linears in blocks."""
        linears, refusals = [], []
        for name, places in _by_weight(self.base).items():
            path = name.rpartition(".")[0]
            reads = frozenset[Key]().union(*(self.reads[place] for place in places))
            inside = any(f"{path}.".startswith(f"{block}.") for block in blocks)
            if not inside or not reads & self.clocks.keys() or not all(map(self._same_for_tokens, places)):
                continue
            reason = _unfit(self.replica.module, path, name)
            if reason:
                refusals.append(Refusal(path, reason))
            else:
                upstream = self._upstream(places, reads) if len(reads) == 1 else ()
                linears.append(Modulation(path, reads, upstream))
        if not linears and not refusals:
            refusals.append(Refusal("", NONE))
        return Found(tuple(linears), tuple(refusals))

    def _same_for_tokens(self, place: int) -> bool:
        """Tell whether an input has no more different rows than the call has samples, or timesteps."""
        x = self.base.touches[place].input
        return x is not None and len(x.reshape(-1, x.shape[-1]).unique(dim=0)) <= self.most

    def _upstream(self, places: Sequence[int], reads: frozenset[Key]) -> tuple[str, ...]:
        """Return modules that stand between the timestep and these uses of a weight."""
        earlier = [place for place in range(min(places)) if self.reads[place] == reads]
        names = {self.base.touches[place].rows.key[0]: place for place in earlier}
        return tuple(
            name.rpartition(".")[0]
            for name, place in names.items()
            if set(places) & set(_followed(self.replica, self.base, shaken=place))
        )


def _followed(replica: Replica, base: Trace, shaken: int = -1) -> list[int]:
    """Run again and return which uses of weights have another input. shaken: a use that gives another output."""
    changed: list[int] = []
    place = -1

    def output(now: Touch, before: Touch) -> Tensor:
        nonlocal place
        place += 1
        if _same(now, before) and place != shaken:
            return before.output
        if not _same(now, before):
            changed.append(place)
        made = torch.Generator().manual_seed(2**31 + place)  # not that of the output itself
        return before.output + torch.randn(before.output.shape, generator=made, dtype=before.output.dtype)

    replica.run(base, outputs=output)
    return changed


def _same(now: Touch, before: Touch) -> bool:
    return not outputs_differ(now.input, before.input) and not outputs_differ(now.index, before.index)


def _by_weight(base: Trace) -> Mapping[str, list[int]]:
    """Return where each weight is used."""
    places: dict[str, list[int]] = {}
    for place, touch in enumerate(base.touches):
        places.setdefault(touch.rows.key[0], []).append(place)
    return places


def _other(value: Any) -> Any:
    """Return another value of the same kind; None for what is neither numbers nor indices."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value * 0.731 + 0.137
    if isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64):
        return value + 1
    return value * 0.731 + 0.137 if isinstance(value, float) else None


def _clocks(given: Mapping[Key, Any]) -> dict[Key, Tensor]:
    """Return the arguments that may be a timestep: plain numbers, or an integer for each sample."""
    plain = {key: value for key, value in given.items() if isinstance(value, Tensor) and value.ndim < 2}
    most = (1, _batch(given))
    return {key: value for key, value in plain.items() if value.is_floating_point() or value.numel() in most}


def _batch(given: Mapping[Key, Any]) -> int:
    """Return the samples of a call: the length of its first tensor of features."""
    features = (item for item in given.values() if isinstance(item, Tensor) and item.is_floating_point())
    return next((len(item) for item in features if item.ndim > 1), 1)


def _unfit(module: nn.Module, path: str, name: str) -> str:
    """Say why a weight's module can't be replaced; empty where it can."""
    owner = module.get_submodule(path)
    if not isinstance(owner, nn.Linear) or name != f"{path}.weight":
        return f"its weight is that of a {type(owner).__name__}, not of a linear"
    modules = [place for place, item in module.named_modules(remove_duplicate=False) if item is owner]
    tensors = [key for key, item in module.named_parameters(remove_duplicate=False) if item is owner.weight]
    if len(modules) > 1 or len(tensors) > 1:
        return f"it is shared with {(modules + tensors)[-1]!r}"
    return ""
