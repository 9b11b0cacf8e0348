"""The integer attributes that must follow when units go: the fewest that make compact equal masked.

A stale head count is silently wrong in most attention code, so nothing is taken from an attribute's name:
each candidate set is tried on the edited block, and every matmul's input must be what the masked block gives.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dit_compress.structure.edits import SetAttribute, Substitute, compile_edits
from dit_compress.structure.facts import Follow
from dit_compress.structure.lookup import attribute_at, set_attribute
from dit_compress.structure.observe.blocks import is_in
from dit_compress.structure.observe.probe import outputs_differ
from dit_compress.structure.observe.trace import FAILURES, Change, DivergedError
from dit_compress.structure.raised import line_of
from dit_compress.structure.substitutes import free_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from dit_compress.structure.facts import UnitList
    from dit_compress.structure.observe.trace import Touch, Trace
    from dit_compress.structure.observe.units import Units
    from dit_compress.structure.observe.weightless import Replica

LARGEST = 3
"""Attributes that may have to follow together."""
EXACT = 1e-10
"""Largest max|Δ| / max|reference| between masked and compact in float64."""


def solve(replica: Replica, unit_list: UnitList, units: Units) -> UnitList | None:
    """Return the list of units with the attributes that follow; None if no set of them makes compact equal masked.

    Raises DivergedError where they make it equal for the recorded arguments, and not for others.
    """
    if unit_list.count == 1:
        return unit_list
    replica = replica.edited([Substitute(path) for path in unit_list.substitutes])
    base = replica.run()
    trials = [_Trial(replica, base, unit_list, units, kept) for kept in plans(unit_list.count)]
    candidates = list(_candidates(replica, unit_list))
    for size in range(min(LARGEST, len(candidates)) + 1):
        for follows in combinations(candidates, size):
            if all(trial.exact(follows) for trial in trials):
                if not _exact_elsewhere(replica, unit_list, units, follows):
                    raise DivergedError("with other arguments the block does something else")
                return replace(unit_list, follows=follows)
    return None


def solve_with_stand_ins(replica: Replica, unit_list: UnitList, units: Units) -> UnitList | None:
    """Return the same, with a stand-in for the module whose reshapes take a width from the stream."""
    for path, owner in replica.module.named_modules():
        near = is_in(path, unit_list.path) or is_in(unit_list.path, path)
        if near and path not in unit_list.substitutes and free_width(type(owner)) not in (None, type(owner)):
            more = replace(unit_list, substitutes=(*unit_list.substitutes, path))
            solved = solve(replica, more, units)
            if solved is not None:
                return solved
    return None


def failing_line(replica: Replica, unit_list: UnitList, units: Units) -> str:
    """Return the line of a stranger's code that fails with fewer units, whatever follows; empty where none does."""
    replica = replica.edited([Substitute(path) for path in unit_list.substitutes])
    trial = _Trial(replica, replica.run(), unit_list, units, plans(unit_list.count)[0])
    candidates, lines = list(_candidates(replica, unit_list)), []
    for size in (*range(1, LARGEST + 1), 0):
        for follows in combinations(candidates, size):
            trial.exact(follows)
            if trial.failed is None:
                return ""
            lines.append(line_of(trial.failed))
    line = next(filter(None, lines), None)
    return f"{line[0]}, which fails with fewer: {line[1]}" if line else ""


def _exact_elsewhere(replica: Replica, unit_list: UnitList, units: Units, follows: tuple[Follow, ...]) -> bool:
    """Tell whether the same holds for the negated arguments, as far as the block takes them."""
    other = copy.copy(replica)
    other.call = replica.call.map(lambda value: -value if value.is_floating_point() else value)
    try:
        trial = _Trial(other, other.run(), unit_list, units, plans(unit_list.count)[0])
    except (DivergedError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError):
        return True
    return trial.exact(follows)


def plans(count: int) -> list[tuple[int, ...]]:
    """Make two plans that keep different units and different numbers of them."""
    most = tuple(range(1, count))
    few = tuple(range(1, count, 2))
    return [most] if few == most else [most, few]


class _Trial:
    """One plan: the masked run, and the edited block before its attributes are set."""

    def __init__(self, replica: Replica, base: Trace, unit_list: UnitList, units: Units, kept: tuple[int, ...]) -> None:
        self.gone = np.setdiff1d(np.arange(unit_list.count), kept)
        removed = {key: units.owned[key][self.gone].ravel() for key in (*units.rows, *units.cols)}
        self.removed = removed
        zero = {key: removed[key] for key in units.rows if key[1] != ("out",)}
        self.masked = replica.run(base, Change(rows=zero, zero=True))
        axis = replace(unit_list, stack="").axis("trial")
        edits = compile_edits(replica.module, [axis], {axis.name: kept})
        self.compact = replica.edited(
            [edit for edit in edits if not isinstance(edit, SetAttribute) or unit_list.across]
        )
        self.failed: Exception | None = None

    def exact(self, follows: tuple[Follow, ...]) -> bool:
        """Tell whether the edited block with these attributes gives what the masked one gives, everywhere."""
        module, self.failed = self.compact.module, None
        before = {follow: int(attribute_at(module, follow.module, follow.attribute)) for follow in follows}
        for follow, value in before.items():
            after = value - (follow.step or 0) * len(self.gone)
            set_attribute(module, follow.module, follow.attribute, after)
        try:
            trace = self.compact.run(self.masked, outputs=self._output)
        except (DivergedError, RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            self.failed = error
            return False
        finally:
            for follow, value in before.items():
                set_attribute(module, follow.module, follow.attribute, value)
        pairs = zip(self.masked.touches, trace.touches, strict=True)
        return all(self._same(*pair) for pair in pairs) and not outputs_differ(self.masked.output, trace.output)

    def _output(self, _note: Touch, before: Touch) -> Tensor:
        return before.output[..., self._kept(before.rows.key, before.rows.index)]

    def _same(self, before: Touch, after: Touch) -> bool:
        if before.input is None or after.input is None or before.cols is None:
            return True
        reference = before.input[..., self._kept(before.cols.key, before.cols.index)]
        if reference.shape != after.input.shape:
            return False
        scale = reference.abs().max().clamp_min(1e-300) if reference.numel() else torch.tensor(1.0)
        return bool((torch.nan_to_num(reference - after.input).abs() <= EXACT * scale).all())

    def _kept(self, key: object, index: np.ndarray) -> Tensor:
        gone = self.removed.get(key, np.empty(0, int))  # type: ignore[call-overload]
        return torch.from_numpy(~np.isin(index, gone))


def _candidates(replica: Replica, unit_list: UnitList) -> Iterator[Follow]:
    """Yield integers that the block reads and that count units or their entries; the list's own module's first."""
    module, read = replica.module, read_integers(replica)
    entries = {1, *(member.indices.shape[1] for member in unit_list.members)}
    whole = {
        (tensor.shape[member.dim], member.indices.shape[1])
        for member in unit_list.members
        for tensor in [attribute_at(module, "", member.tensor)]
    }
    found = []
    for path, owner in module.named_modules():
        for name, value in integers(owner):
            if (path, name) not in read:
                continue
            steps = {step for step in entries if value == step * unit_list.count}
            steps |= {step for size, step in whole if value == size}
            if value % unit_list.count == 0 and 1 < value // unit_list.count <= max(entries):
                steps.add(value // unit_list.count)
            distance = 0 if path == unit_list.path else 1 if unit_list.path.startswith(path) else 2
            found += [(distance, "head" not in name, path, name, step) for step in sorted(steps)]
    for _, _, path, name, step in sorted(found):
        yield Follow(path, name, step)


def read_integers(replica: Replica) -> set[tuple[str, str]]:
    """Return the integers that a run reads, by module and name; what is only kept for information need not follow.

    Their objects get a class that notes it. All integers, where an object or the block will have none.
    """
    read: set[tuple[str, str]] = set()
    whole = {(path, name) for path, owner in replica.module.named_modules() for name, _ in integers(owner)}
    before: list[tuple[object, type]] = []
    try:
        for path, owner in replica.module.named_modules():
            for holder, prefix in _holders(owner):
                places = {name: (path, prefix + name) for name, _ in _own_integers(holder)}
                if places:
                    own = type(holder)
                    object.__setattr__(holder, "__class__", _noting(own, places, read))
                    before.append((holder, own))
        replica.run()
    except FAILURES:
        read = whole
    finally:
        for holder, own in reversed(before):
            object.__setattr__(holder, "__class__", own)
    return read


def _noting(own: type, places: Mapping[str, tuple[str, str]], read: set[tuple[str, str]]) -> type:
    """Return the same class, whose objects note which of some attributes are read."""

    def note(self: Any, name: str) -> Any:
        if name in places:
            read.add(places[name])
        return own.__getattribute__(self, name)  # type: ignore[call-arg]  # of an object, not of the type

    return type(own.__name__, (own,), {"__getattribute__": note, "__module__": own.__module__})


def integers(owner: object) -> Iterator[tuple[str, int]]:
    """Yield integers on a module and on the plain objects that it holds (attention processors); none of torch's own."""
    for holder, prefix in _holders(owner):
        for name, value in _own_integers(holder):
            yield prefix + name, value


def _holders(owner: object) -> Iterator[tuple[object, str]]:
    """Yield a module, and the plain objects that it holds, each with what its names begin with; none of torch's own."""
    if type(owner).__module__.startswith("torch.nn"):
        return
    yield owner, ""
    for name, value in vars(owner).items():
        plain = hasattr(value, "__dict__") and not isinstance(value, nn.Module | torch.Tensor | type)
        if plain and not name.startswith("_"):
            yield value, f"{name}."


def _own_integers(holder: object) -> Iterator[tuple[str, int]]:
    for name, value in vars(holder).items():
        if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
            yield name, value
