"""Find what belongs to each channel of the residual stream, through a whole module, by observation.

One weightless run of the whole module, with its norms cut (:mod:`dit_compress.structure.observe.width_norms`). The
channels of the stream that enters the first block get other numbers, by the bits of their index: the bits under which
an input of a matmul changes spell the channel that it reads. What writes into such inputs is cut alike; which of its
rows write into which channel is a guess (in order, in chunks, interleaved), held against random channels. Nothing is
taken for found that then does not compute the same with fewer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_compress.structure.lookup import argument_at, with_argument
from dit_compress.structure.observe.probe import DRAWS, OUTPUT, changed_columns, noise_like, outputs_differ
from dit_compress.structure.observe.trace import Change, Key
from dit_compress.structure.observe.weightless import watch
from dit_compress.structure.observe.width_norms import norms_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dit_compress.structure.facts import Stack
    from dit_compress.structure.observe.weightless import Replica

NONE = -1
"""The channel of an entry that belongs to none."""
MIXED = -2
"""The channel of an entry that reads several."""
ROUNDS = 12


class NoWidthError(ValueError):
    """The width can't be cut; path: what is in the way."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path


@dataclass
class Labels:
    """The channel of each entry: of inputs, of what writes (rows of matmuls, outputs of norms), of parameters read."""

    width: int
    read: dict[Key, np.ndarray] = field(default_factory=dict)
    written: dict[Key, np.ndarray] = field(default_factory=dict)

    def joined(self, other: Labels) -> Labels:
        """Join the channels of another stream, the first with the first."""
        return Labels(self.width, {**self.read, **other.read}, {**self.written, **other.written})


class Tracer:
    """Follows the channels of one stream.

    seed: the block whose stream argument is changed first, and that argument. stacks: all of the module: what blocks
    that are alike write is looked at in one of them, and held against random channels in all.
    """

    def __init__(self, replica: Replica, stack: Stack, stacks: Sequence[Stack]) -> None:
        self.stacks = stacks
        self.seen, _ = watch(replica)
        self.norms = norms_of(replica, self.seen)
        replica.cuts = tuple(self.norms.sides)
        self.replica, self.base = replica, replica.run()
        self.seed = stack.block(0), stack.stream
        self.labels = Labels(0)
        self.random = np.random.default_rng(0)
        self.sizes: dict[Key, int] = {}
        self.writers: dict[Key, int] = {}
        for touch in self.base.touches:
            self.writers[touch.rows.key] = int(np.prod(touch.rows.shape))
            if touch.cols is not None:
                self.sizes[touch.cols.key] = int(np.prod(touch.cols.shape))
        for name in sorted(self.base.read):
            if name.rpartition(".")[0] not in replica.cuts:
                shape = replica.values[name].shape
                self.writers |= {(name, ("value", dim)): size for dim, size in enumerate(shape)}
        self.refuted: set[Key] = set()
        self.effects: dict[Key, dict[Key, np.ndarray]] = {}

    def others(self, main: Labels) -> list[int | str]:
        """Return arguments of the first block that are as wide as the stream, and hold none of its channels."""
        given = self.seen[self.seed[0]].inputs()
        return [
            key
            for key, value in given.items()
            if isinstance(value, Tensor)
            and value.is_floating_point()
            and value.ndim > 1
            and value.shape[-1] == main.width
            and self._apart(key, main)
        ]

    def _apart(self, argument: int | str, main: Labels) -> bool:
        """Tell whether what reads an argument directly reads no channel of the stream."""
        self._begin(argument)
        changed = self.changed(self._change(np.ones(main.width, bool), seeded=True))
        return bool(changed) and OUTPUT not in changed and not main.read.keys() & changed.keys()

    def _begin(self, argument: int | str) -> None:
        path = self.seed[0]
        self.seed, call = (path, argument), self.seen[path]
        self.labels, self.refuted = Labels(argument_at(call.args, call.kwargs, argument).shape[-1]), set()

    def follow(self, argument: int | str) -> Labels:
        """Label all that reads or writes channels of an argument of the first block.

        Raises NoWidthError where something mixes them.
        """
        self._begin(argument)
        for _ in range(ROUNDS):
            before = len(self.labels.written)
            self._read(seeded=not self.labels.written)
            self._write()
            if before == len(self.labels.written):
                break
        self._check()
        return self.labels

    # -- what reads

    def _read(self, *, seeded: bool) -> None:
        """Label the inputs that read what is labelled, bit by bit."""
        width, bits = self.labels.width, max(1, (self.labels.width - 1).bit_length())
        spelt = {key: np.zeros((bits, 2, size), bool) for key, size in self.sizes.items()}
        for bit in range(bits):
            for side in (0, 1):
                chosen = (np.arange(width) >> bit & 1) == side
                for key, entries in self.changed(self._change(chosen, seeded=seeded)).items():
                    if key == OUTPUT:
                        raise NoWidthError("", "its channels reach the output without a matmul")
                    spelt[key][bit, side][entries] = True
        for key, found in spelt.items():
            if not found.any():
                continue
            one = (found[:, 0] ^ found[:, 1]).all(0)
            label = (found[:, 1] * (1 << np.arange(bits))[:, None]).sum(0)
            label = np.where(one, label, np.where(found.any((0, 1)), MIXED, NONE))
            if (label == MIXED).any():
                raise NoWidthError(self.place(key), self._why())
            known = self.labels.read.get(key)
            self.labels.read[key] = label if known is None else np.where(label == NONE, known, label)
            if key[1] == ("in",):
                self.labels.written[key[0], ("out",)] = self.labels.read[key]

    def _why(self) -> str:
        """Say why an input reads several channels."""
        inside = sorted(self.norms.others)
        more = f" (no mask counts the kept alone for {', '.join(inside[:3])})" if inside else ""
        return f"reads several channels in each of its inputs: a norm that is no module of its own, or a reshape{more}"

    # -- what writes

    def _write(self) -> None:
        """Label the rows and parameters that write into labelled inputs."""
        open_ = [key for key in self.writers if key not in self.labels.written and key not in self.refuted]
        groups: dict[Any, list[Key]] = {}
        for key in open_:
            groups.setdefault((self._place_in_block(key[0]), key[1], self.writers[key]), []).append(key)
        for keys in groups.values():
            first, size = keys[0], self.writers[keys[0]]
            if first not in self.effects:
                self.effects[first] = self.changed(self.alone(first, np.arange(size)))
            if not self._touches(self.effects[first]):
                continue
            label = next((guess for guess in self._guesses(size) if self._holds(first, guess)), None)
            if label is None:
                if first[1][0] != "value":
                    raise NoWidthError(self.place(first), "writes into the stream, and not one channel with each row")
                self.refuted |= set(keys)
                continue
            self.labels.written |= dict.fromkeys(keys, label)
            self.labels.read |= {(key[0], ("in",)): label for key in keys if key[1] == ("out",)}

    def _place_in_block(self, name: str) -> str:
        """Return a name without the number of its block."""
        for stack in self.stacks:
            for block in stack.blocks:
                if name.startswith(f"{block}."):
                    return f"{stack.path}.*{name.removeprefix(block)}"
        return name

    def _guesses(self, size: int) -> Iterator[np.ndarray]:
        width = self.labels.width
        if size % width == 0:
            yield np.arange(size) % width
            if size > width:
                yield np.arange(size) // (size // width)

    def _holds(self, key: Key, label: np.ndarray) -> bool:
        """Tell whether entries of some channels change what reads those channels, and nothing else."""
        for _ in range(2):  # what escapes here is met by the check of all together
            chosen = self.random.random(self.labels.width) < 0.5
            if not self._only(self.changed(self.alone(key, np.flatnonzero(chosen[label]))), chosen):
                return False
        return True

    def _touches(self, changed: Mapping[Key, np.ndarray]) -> bool:
        return any(key in self.labels.read and (self.labels.read[key][e] >= 0).any() for key, e in changed.items())

    def _only(self, changed: Mapping[Key, np.ndarray], chosen: np.ndarray) -> bool:
        """Tell whether nothing of another channel changed. What nobody has labelled yet may."""
        for key, entries in changed.items():
            if key == OUTPUT:
                return False
            label = self.labels.read.get(key)
            if label is not None and not all(item >= 0 and chosen[item] for item in label[entries].tolist()):
                return False
        return True

    def _check(self) -> None:
        """Hold all labels together against random channels. Raises NoWidthError where they don't hold."""
        for _ in range(DRAWS // 2):
            chosen = self.random.random(self.labels.width) < 0.5
            changed = self.changed(self._change(chosen))
            for key, entries in changed.items():
                label = self.labels.read.get(key)
                if label is None or not all(item >= 0 and chosen[item] for item in label[entries].tolist()):
                    raise NoWidthError(self.place(key), "reads channels otherwise than blocks that are alike")

    # -- changes

    def _change(self, chosen: np.ndarray, *, seeded: bool = False) -> Change:
        """Change all that writes into some channels."""
        rows: dict[Key, np.ndarray] = {}
        values: dict[str, Tensor] = {}
        for key, label in self.labels.written.items():
            entries = np.flatnonzero((label >= 0) & chosen[label])
            if key[1][:1] == ("value",):
                values[key[0]] = self.other(key[0], key[1][1], entries, values.get(key[0]))
            else:
                rows[key] = entries
        path, stream = self.seed

        def edit(args: Any, kwargs: Any) -> tuple[Any, Any]:
            before = argument_at(args, kwargs, stream)
            made = torch.where(torch.from_numpy(chosen), noise_like(before, 2), before)
            return with_argument(args, kwargs, stream, made)

        return Change(rows, values, (path, edit) if seeded else None)

    def alone(self, key: Key, entries: np.ndarray) -> Change:
        """Change some entries of one writer."""
        if key[1][:1] == ("value",):
            return Change(values={key[0]: self.other(key[0], key[1][1], entries)})
        return Change(rows={key: entries})

    def other(self, name: str, dim: int, entries: np.ndarray, before: Tensor | None = None) -> Tensor:
        """Return other values in some slices of a small parameter."""
        value = self.replica.values[name] if before is None else before
        noise = torch.rand(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2
        where = torch.zeros(value.shape[dim], dtype=torch.bool)
        where[torch.from_numpy(entries)] = True
        return torch.where(where.reshape([-1 if place == dim else 1 for place in range(value.ndim)]), noise, value)

    def changed(self, change: Change) -> dict[Key, np.ndarray]:
        """Return the entries of inputs that change; the output's key where it does."""
        trace = self.replica.run(self.base, change)
        found: dict[Key, list[np.ndarray]] = {}
        for before, after in zip(self.base.touches, trace.touches, strict=True):
            if before.cols is not None and (entries := changed_columns(before, after)) is not None:
                found.setdefault(before.cols.key, []).append(entries)
        if outputs_differ(self.base.output, trace.output):
            found[OUTPUT] = [np.zeros(1, int)]
        return {key: np.unique(np.concatenate(entries)) for key, entries in found.items()}

    def place(self, key: Key) -> str:
        """Return the module of a weight, a norm or a parameter."""
        return key[0] if key[0] in self.replica.cuts else key[0].rpartition(".")[0]
