"""From edges to units: join what moves together, and sort the joined sets into lists of exchangeable units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.structure.lookup import argument_at, with_argument
from dit_compress.structure.observe.probe import OUTPUT, Effect, Prober, Run, differs, merged, noise_like
from dit_compress.structure.observe.trace import Change, Key, Trace
from dit_compress.structure.record import map_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dit_compress.structure.observe.weightless import Replica


@dataclass(frozen=True)
class Units:
    """Exchangeable units: unit u owns the entries ``owned[key][u]``, raveled over the key's dimensions.

    rows, cols, tables: which keys are outputs of matmuls, inputs of matmuls, small parameters.
    reads: whether the stream flows into them.
    """

    owned: Mapping[Key, np.ndarray]
    rows: tuple[Key, ...]
    cols: tuple[Key, ...]
    tables: tuple[Key, ...] = ()
    reads: bool = True

    @property
    def count(self) -> int:
        """The number of units."""
        return len(next(iter(self.owned.values())))


class Observer:
    """Probes one block.

    streams: arguments of the block that carry its streams.
    """

    def __init__(self, replica: Replica, base: Trace, streams: Sequence[int | str]) -> None:
        self.replica, self.base, self.streams = replica, base, streams
        self.prober = Prober(replica, base)
        self.sizes: dict[Key, int] = {OUTPUT: 1}
        self.dead: list[Key] = []
        self.idle: dict[Key, np.ndarray] = {}
        self.inner: frozenset[Key] = frozenset()
        self.effects: dict[Key, Effect] = {}
        self.rows: set[Key] = set()
        self.cols: set[Key] = set()
        for touch in base.touches:
            self.rows.add(touch.rows.key)
            self.sizes[touch.rows.key] = int(np.prod(touch.rows.shape))
            if touch.cols is not None:
                self.cols.add(touch.cols.key)
                self.sizes[touch.cols.key] = int(np.prod(touch.cols.shape))

    def units(self) -> tuple[Units, ...]:
        """Return every list of units that contributes nothing once it is masked."""
        inner = self.inner = self._inner()
        lists = {key: (self.sizes[key], _rows(key)) for key in sorted(self.rows, key=str)}
        whole = {key: self.prober.effect(change(np.arange(size))) for key, (size, change) in lists.items()}
        self.effects = whole
        self.dead = [key for key, effect in whole.items() if not effect]
        runs = self.prober.runs({key: lists[key] for key, effect in whole.items() if inner & effect.keys()})
        for key, found_runs in runs.items():
            idle = [entry for run in found_runs if not run.effect for entry in range(run.start, run.stop)]
            self.idle[key] = np.array(idle, dtype=int)
        labels = join(self.sizes, runs, self.replica.cuts)
        found = [item for item in exchangeable(labels, self.rows, inner) if self._maskable(item)]
        if not found:
            return ()
        reached = self._reached(whole)
        found = [replace(item, reads=any(key in reached for key in item.rows)) for item in found]
        return tuple(self._with_tables(found))

    def unexplained(self, listed: Sequence[Units]) -> list[str]:
        """Find weights that read what the streams' matmuls give, and not the streams: a part should hold them."""
        read = {target for key in self._reached(self.effects) for target in self.effects[key] if target in self.inner}
        held = {key[0] for units in listed for key in (*units.rows, *units.cols)}
        return sorted({key[0] for key in read if key[1] != ("in",)} - held)

    def _inner(self) -> frozenset[Key]:
        """Find inputs of matmuls that no stream reaches directly: the only ones that can be cut."""
        read = self.prober.effect(Change(argument=("", self._other_streams)))
        return frozenset(self.cols - read.keys())

    def _other_streams(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Draw other numbers in the arguments that carry streams."""
        for stream in self.streams:
            args, kwargs = with_argument(args, kwargs, stream, _noise(argument_at(args, kwargs, stream)))
        return args, kwargs

    def variants(self, units: Units) -> Iterator[Units]:
        """Return the units; then, with outputs that influence nothing (queries of a stream that ends here) cut alike.

        Such outputs are those of a matmul of their own, or a part of one that holds the units' own, too.
        """
        yield units
        idle = {key: self.idle[key] for key in units.rows if len(self.idle.get(key, ()))}
        idle = {key: entries for key, entries in idle.items() if len(entries) % units.count == 0}
        for order in ((units.count, -1), (-1, units.count)) if idle else ():
            parts = {key: e.reshape(order) if order[0] > 0 else e.reshape(order).T for key, e in idle.items()}
            more = {key: np.sort(np.hstack([units.owned[key], part]), axis=1) for key, part in parts.items()}
            yield replace(units, owned={**units.owned, **more})
        for like in units.rows:
            dead = [key for key in self.dead if self.sizes[key] == self.sizes[like] and key[1] == like[1]]
            if dead:
                owned = {**units.owned, **dict.fromkeys(dead, units.owned[like])}
                yield replace(units, owned=owned, rows=(*units.rows, *dead))

    def _maskable(self, units: Units) -> bool:
        """Tell whether the consumers read zeros once the producers give zeros, or nothing but the producers."""
        change = Change(rows={key: units.owned[key].ravel() for key in units.rows}, zero=True)
        for other in (change, Change(argument=("", _other_arguments))):
            trace = self.replica.run(self.base, other)
            for before, after in zip(self.base.touches, trace.touches, strict=True):
                if before.cols is None or before.cols.key not in units.cols or after.input is None:
                    continue
                where = torch.from_numpy(np.isin(before.cols.index, units.owned[before.cols.key]))
                reference = torch.zeros_like(after.input) if other is change else before.input
                assert reference is not None
                if differs(after.input[..., where], reference[..., where]).any():
                    break
            else:
                return True
        return False

    def _reached(self, effects: Mapping[Key, Effect]) -> set[Key]:
        """Find outputs of matmuls into which a stream flows, over any number of steps."""
        names = {key[0] for key in self.prober.effect(Change(argument=("", self._other_streams)))}
        fresh = set(names)
        while fresh:
            fresh = {target[0] for key, found in effects.items() if key[0] in names for target in found} - names
            names |= fresh
        return {key for key in self.rows if key[0] in names}

    def _with_tables(self, found: list[Units]) -> list[Units]:
        """Add small parameters whose every slice belongs to one unit (a bias, a table with a row per head)."""
        columns = {key for units in found for key in units.cols}
        keys = {
            (name, (dim,)): size
            for name in sorted(self.base.read)
            if name.rpartition(".")[0] not in self.replica.cuts
            and columns & self.prober.effect(self._table(name, (0,))(np.arange(len(self.replica.values[name])))).keys()
            for dim, size in enumerate(self.replica.values[name].shape)
            if size > 1
        }
        runs = self.prober.runs({key: (size, self._table(*key)) for key, size in keys.items()})
        for key, size in keys.items():
            for place, units in enumerate(found):
                owned = owners(units, [merged(runs[key], [entry]) for entry in range(size)])
                if owned is not None:
                    found[place] = replace(units, owned={**units.owned, key: owned}, tables=(*units.tables, key))
        return found

    def _table(self, name: str, dims: tuple[Any, ...]) -> Callable[[np.ndarray], Change]:
        """Change the values of some slices of a small parameter."""
        before = self.replica.values[name]

        def change(chosen: np.ndarray) -> Change:
            other = torch.rand(before.shape, generator=torch.Generator().manual_seed(1), dtype=before.dtype) + 2
            where = torch.zeros(before.shape[dims[0]], dtype=torch.bool)
            where[torch.from_numpy(chosen)] = True
            shape = [-1 if dim == dims[0] else 1 for dim in range(before.ndim)]
            return Change(values={name: torch.where(where.reshape(shape), other, before)})

        return change


def _rows(key: Key) -> Callable[[np.ndarray], Change]:
    return lambda chosen: Change(rows={key: chosen})


def _noise(value: Any) -> Any:
    """Draw other numbers in every floating tensor."""
    return map_tensors(lambda tensor: noise_like(tensor, 2), value)


def _other_arguments(args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _noise(args), _noise(kwargs)


def owners(units: Units, effects: Sequence[Mapping[Key, frozenset[int]]]) -> np.ndarray | None:
    """Find which entry belongs to which unit, ``[units, entries]``; None unless every entry belongs to just one."""
    unit_of = {(key, int(entry)): u for key in units.cols for u, row in enumerate(units.owned[key]) for entry in row}
    owned: list[list[int]] = [[] for _ in range(units.count)]
    for entry, effect in enumerate(effects):
        found = {unit_of.get((key, column)) for key, columns in effect.items() for column in columns}
        if len(found) != 1 or None in found:
            return None
        owned[found.pop()].append(entry)  # type: ignore[index]
    return np.array(owned) if len({len(entries) for entries in owned}) == 1 and owned[0] else None


def join(sizes: Mapping[Key, int], runs: Mapping[Key, list[Run]], cuts: Sequence[str]) -> dict[Key, np.ndarray]:
    """Label the connected components over all entries, by key. The stream's label is that of ``OUTPUT``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    starts, total = {}, 0
    for key, size in sizes.items():
        starts[key], total = total, total + size
    links = [link for key, found in runs.items() for run in found for link in _links(run, starts[key], starts)]
    for path in cuts:
        inputs, outputs = starts.get((path, ("in",)), 0), starts.get((path, ("out",)), 0)
        links += [(inputs + entry, outputs + entry) for entry in range(sizes.get((path, ("in",)), 0))]
    ends = np.array(links, dtype=np.int64).reshape(-1, 2).T
    labels = connected_components(coo_array((np.ones(len(links)), tuple(ends)), shape=(total, total)), directed=False)[
        1
    ]
    return {key: labels[starts[key] : starts[key] + size] for key, size in sizes.items()}


def _links(run: Run, origin: int, starts: Mapping[Key, int]) -> Iterator[tuple[int, int]]:
    """Yield pairs of entries that a run's effect ties together."""
    first, stop = origin + run.start, origin + run.stop
    for target, columns in run.effect.items():
        if run.shift:
            start = starts[target] + next(iter(columns))
            yield from ((first + place, start + place) for place in range(stop - first))
        else:
            yield from ((first, starts[target] + column) for column in columns)
            yield from ((node, first) for node in range(first + 1, stop))


def exchangeable(labels: Mapping[Key, np.ndarray], rows: set[Key], cols: frozenset[Key]) -> list[Units]:
    """List components with the same number of entries in the same weights, as units, in order of their entries.

    cols: the inputs of matmuls that can be cut.
    """
    stream = labels[OUTPUT][0]
    owned: dict[int, dict[Key, list[int]]] = {}
    for key, found in labels.items():
        for entry, label in enumerate(found.tolist()):
            if label != stream:
                owned.setdefault(label, {}).setdefault(key, []).append(entry)
    groups: dict[Any, list[dict[Key, list[int]]]] = {}
    for parts in owned.values():
        # A cut norm alone reads nothing away: a unit ends in the input of a matmul.
        if any(key in cols and key[1] != ("in",) for key in parts) and any(key in rows for key in parts):
            signature = tuple(sorted(((key, len(entries)) for key, entries in parts.items()), key=str))
            groups.setdefault(signature, []).append(parts)
    listed = []
    for signature, members in groups.items():
        keys = [key for key, _ in signature]
        members.sort(key=lambda parts: min(parts[keys[0]]))
        listed.append(
            Units(
                {key: np.array([parts[key] for parts in members]) for key in keys},
                tuple(key for key in keys if key in rows),
                tuple(key for key in keys if key in cols),
            )
        )
    return listed
