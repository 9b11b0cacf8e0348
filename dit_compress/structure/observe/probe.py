"""Entries of a block's parameters that belong together, found by perturbation.

Every output row of every matmul, and every entry of every small parameter, gets other numbers; which input
columns of other matmuls change is what it influences *directly* (replayed outputs stop anything indirect,
see :mod:`dit_compress.structure.observe.weightless`). Entries joined by such edges form a unit: the rows of query, key
and value of one head with the columns of the output projection that read it, a gate with its value.

Neighbours mostly act alike, so the probe compares row with row by galloping, guesses runs, and tests the
guess on random subsets. Where the test fails, every single row is probed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch

from dit_compress.structure.observe.trace import Change, DivergedError, Key, Touch, Trace
from dit_compress.structure.record import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from dit_compress.structure.observe.weightless import Replica

    Perturb = Callable[[np.ndarray], Change]

OUTPUT: Key = ("", ("output",))
"""The key of all that leaves the block; entries that reach it directly belong to a stream."""
TOLERANCE = 1e-9
DRAWS = 12
"""Random subsets on which guessed runs are tested; a wrong edge escapes one with probability 3/4 at most."""

PATTERN = 3
"""Runs that are looked at before a pattern is continued."""
LONG = 12
"""Runs from which on continuing a pattern takes fewer looks than finding each."""

Effect = dict[Key, frozenset[int]]
"""Columns that change, by weight."""


@dataclass(frozen=True)
class Run:
    """Neighbouring entries that act alike: all on the same columns, or (``shift``) each one column further."""

    start: int
    stop: int
    effect: Effect
    shift: bool

    def at(self, entry: int) -> Effect:
        """Return the columns that one entry changes."""
        if not self.shift:
            return self.effect
        return {key: frozenset(column + entry - self.start for column in found) for key, found in self.effect.items()}


class Prober:
    """Perturbs one block. diverged: whether a perturbation ever took another way through it."""

    def __init__(self, replica: Replica, base: Trace) -> None:
        self.replica, self.base, self.diverged = replica, base, False
        self.random = np.random.default_rng(replica.seed)

    def effect(self, change: Change) -> Effect:
        """Return what differs from the recorded run, over all uses of every weight."""
        try:
            trace = self.replica.run(self.base, change)
        except (DivergedError, RuntimeError, ValueError, IndexError) as error:
            # The control flow, or a shape, depends on it: it touches everything.
            self.diverged = self.diverged or isinstance(error, DivergedError)
            return {OUTPUT: frozenset([0])}
        found: dict[Key, set[int]] = {}
        for before, after in zip(self.base.touches, trace.touches, strict=True):
            if before.cols is not None and (columns := changed_columns(before, after)) is not None:
                found.setdefault(before.cols.key, set()).update(columns.tolist())
        if outputs_differ(self.base.output, trace.output):
            found[OUTPUT] = {0}
        return {key: frozenset(columns) for key, columns in found.items()}

    def runs(self, lists: Mapping[Key, tuple[int, Perturb]]) -> dict[Key, list[Run]]:
        """Find the runs of several lists of entries: for each its size and what perturbs some of them at once."""
        known = {key: list(gallop(size, self._joint(perturb))) for key, (size, perturb) in lists.items()}
        guessed = {key: runs for key, runs in known.items() if len(runs) < lists[key][0]}
        if self._hold(guessed, lists):
            return known
        for key, runs in guessed.items():
            if not self._hold({key: runs}, lists):
                size, perturb = lists[key]
                effect = self._joint(perturb)
                known[key] = [Run(entry, entry + 1, effect(entry), shift=False) for entry in range(size)]
        return known

    def _joint(self, perturb: Perturb) -> Callable[..., Effect]:
        """Return the function from entries to what they change together."""
        return cache(lambda *entries: self.effect(perturb(np.array(entries))))

    def _hold(self, guessed: Mapping[Key, list[Run]], lists: Mapping[Key, tuple[int, Perturb]]) -> bool:
        """Tell whether random subsets of the entries change exactly the columns that the runs predict.

        Entries of a stream are left out: they change everything that follows, and are not removable anyway.
        """
        for draw in range(DRAWS):
            change, expected = Change(), dict[Key, frozenset[int]]()
            for key, runs in guessed.items():
                if len(guessed) > 1 and self.random.random() < 0.5:
                    continue
                chosen = self._subset(runs, whole=bool(draw % 2))
                if chosen:
                    change = change.with_(lists[key][1](np.array(chosen)))
                    expected = _union(expected, merged(runs, chosen))
            if self.effect(change) != expected:
                return False
        return True

    def _subset(self, runs: list[Run], *, whole: bool) -> list[int]:
        """Choose half of the entries, or all entries of half of the runs."""
        chosen: list[int] = []
        for run in runs:
            if OUTPUT in run.effect:
                continue
            entries = np.arange(run.start, run.stop)
            if run.shift or not whole:
                chosen += entries[self.random.random(len(entries)) < 0.5].tolist()
            elif self.random.random() < 0.5:
                chosen += entries.tolist()
        return chosen


def _union(a: Effect, b: Effect) -> Effect:
    return {key: a.get(key, frozenset()) | b.get(key, frozenset()) for key in {*a, *b}}


def gallop(size: int, effect: Callable[..., Effect]) -> Iterator[Run]:
    """Cut ``0 … size`` into runs, looking at few entries. effect: what some entries change together."""
    start, length = 0, 0
    found: list[Run] = []
    while start < size:
        first = effect(start)
        shift = start + 1 < size and _shifted(first, effect(start + 1), 1)
        stop = start + _length(size - start, length, start, first, effect, shift=shift)
        found.append(Run(start, stop, first, shift))
        start, length = stop, stop - start
        if len(found) == PATTERN:
            found += _continued(found, size, effect)
            start = found[-1].stop
    yield from found


def _continued(found: Sequence[Run], size: int, effect: Callable[..., Effect]) -> list[Run]:
    """Continue a regular pattern, such as the rows of heads, to the end; nothing where it is none.

    Runs whose numbers have a certain bit set, and the others, must change exactly what the pattern says. That settles
    every run: of any two there are tests that have the one and not the other.
    """
    first, second = found[:2]
    length, step = first.stop, _step(first.effect, second.effect)
    count = size // length
    if first.shift or step is None or size % length or count < LONG:
        return []
    runs = [Run(n * length, (n + 1) * length, _moved(first.effect, step, n), shift=False) for n in range(count)]
    if any(run != before for run, before in zip(runs, found, strict=False)):
        return []
    for bit in range(count.bit_length()):
        for side in (0, 1):
            entries = [run.start + (n + bit) % length for n, run in enumerate(runs) if n >> bit & 1 == side]
            if entries and effect(*entries) != merged(runs, entries):
                return []
    return runs[len(found) :]


def _step(first: Effect, second: Effect) -> dict[Key, int] | None:
    """Return how much further the columns of each weight are; None where it isn't so, or columns are shared."""
    if not first or first.keys() != second.keys() or OUTPUT in first:
        return None
    step = {key: min(second[key]) - min(columns) for key, columns in first.items()}
    disjoint = all(first[key].isdisjoint(second[key]) for key in first)
    return step if disjoint and _moved(first, step, 1) == second else None


def _moved(effect: Effect, step: Mapping[Key, int], times: int) -> Effect:
    return {key: frozenset(column + step[key] * times for column in columns) for key, columns in effect.items()}


def _length(room: int, guess: int, start: int, first: Effect, effect: Callable[[int], Effect], *, shift: bool) -> int:
    """Count entries from ``start`` that act like the first: as many as in the run before if that fits, else gallop."""

    def alike(offset: int) -> bool:
        other = effect(start + offset)
        return _shifted(first, other, offset) if shift else other == first

    if guess and guess <= room and (guess == 1 or alike(guess - 1)) and (guess == room or not alike(guess)):
        return guess
    if room > LONG and all(alike(offset) for offset in (1, room - 1, room // 2, room // 3)):
        return room  # all of them, most likely; the guess is tested later
    low, high = 1, 1
    while high < room and alike(high):
        low, high = high + 1, min(2 * high, room)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if alike(middle) else (low, middle)
    return low


def _shifted(first: Effect, other: Effect, by: int) -> bool:
    """Tell whether one column per weight changes, ``by`` columns further."""
    if OUTPUT in first or not first or first.keys() != other.keys():
        return False
    return all(
        len(found) == 1 and other[key] == frozenset(column + by for column in found) for key, found in first.items()
    )


def merged(runs: Sequence[Run], entries: Sequence[int]) -> Effect:
    """Merge the effects of several entries (ascending) by the runs."""
    found: dict[Key, set[int]] = {}
    chosen = np.asarray(entries)
    for run in runs:
        low, high = np.searchsorted(chosen, (run.start, run.stop))
        if low == high:
            continue
        for key, columns in run.effect.items():
            taken = found.setdefault(key, set())
            if run.shift:
                taken.update((chosen[low:high] - run.start + next(iter(columns))).tolist())
            else:
                taken.update(columns)
    return {key: frozenset(columns) for key, columns in found.items()}


def changed_columns(before: Touch, after: Touch) -> np.ndarray | None:
    """Return the entries of the weight whose input changed; None where none did."""
    if before.input is None or after.input is None or before.cols is None:
        return None
    if before.input.shape != after.input.shape:
        raise DivergedError("a replay met other shapes")
    if torch.equal(before.input, after.input):
        return None
    different = differs(before.input, after.input).reshape(-1, before.input.shape[-1]).any(0)
    return before.cols.index[different.numpy()] if different.any() else None


def outputs_differ(before: object, after: object) -> bool:
    """Tell whether any tensor in two values differs, or their shapes do."""
    pairs = list(zip_longest(tensors_in(before), tensors_in(after)))
    if any(a is None or b is None or a.shape != b.shape for a, b in pairs):
        return True
    return any(not torch.equal(a, b) and bool(differs(a, b).any()) for a, b in pairs)


def noise_like(tensor: Tensor, seed: int) -> Tensor:
    """Draw other numbers in the same order of memory (operators take other ways through other strides)."""
    if not tensor.is_floating_point():
        return tensor
    # Seeds have 32 bits, and the lowest are those of a replica's own numbers: a stream got what it already had.
    made = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2**31 + seed), dtype=tensor.dtype)
    return torch.empty_like(tensor).copy_(made)


def differs(a: Tensor, b: Tensor) -> Tensor:
    """Mark where two tensors differ by more than round-off; NaN equals NaN."""
    if not (a.is_floating_point() or a.is_complex()):
        return a != b
    return ~torch.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
