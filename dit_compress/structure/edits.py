"""The edit table: a pruning plan, compiled to edits on tensors, attributes, arguments, lists and modules.

The same table edits a live module and a state dict (``apply.py``); it is what a bundle's transform log holds, so that
a pruned model reloads without searching or discovering anything. Tensors that ``Factor`` and ``Tabulate`` make anew
have their shapes from the edit, and their values from the step that made it or from a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.structure.lookup import number_at, tensor_at, tensor_or_none

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dit_compress.structure.facts import Axis, Kept, Norm, Stack

REVISION = 1


@dataclass(frozen=True)
class Take:
    """Keep some rows (dim 0) or columns (dim 1) of a tensor.

    stored: False for a table that the module makes itself, which no state dict and no file holds.
    """

    tensor: str
    dim: int
    index: tuple[int, ...]
    stored: bool = True


@dataclass(frozen=True)
class Scale:
    """Multiply a tensor."""

    tensor: str
    factor: float


@dataclass(frozen=True)
class SetAttribute:
    """Set a number on a module, or on an object it holds (``processor.heads``)."""

    module: str
    attribute: str
    value: int | float


@dataclass(frozen=True)
class GatherArgument:
    """Take some entries of a call argument (a RoPE table over the inner width, or with a row per head).

    Of a tuple, every tensor with ``size`` entries along ``dim`` is taken (0: every tensor).
    """

    module: str
    argument: int | str
    index: tuple[int, ...]
    dim: int = -1
    size: int = 0


@dataclass(frozen=True)
class KeepBlocks:
    """Keep some blocks of a stack; the others are deleted, or replaced by tombstones.

    returns, borrowed: what a tombstone gives, and what it keeps, as in ``Stack``. names: paths of the blocks that
    ``index`` counts, where they are no plain list; the others are tombstones then.
    """

    stack: str
    index: tuple[int, ...]
    tombstones: bool = False
    stream: int | str = 0
    output: int | str | None = None
    returns: tuple[tuple[str, int | str], ...] = ()
    borrowed: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def gone(self, count: int) -> list[str]:
        """Return paths of the blocks that do not stay. count: blocks in the list, where ``names`` are not given."""
        names = self.names or tuple(f"{self.stack}.{index}" for index in range(count))
        return [name for index, name in enumerate(names) if index not in self.index]

    def spared(self) -> list[str]:
        """Return paths of what tombstones keep."""
        return list(self.borrowed) if self.names else [f"{self.stack}.{path}" for path in self.borrowed]


@dataclass(frozen=True)
class Substitute:
    """Put an exact stand-in with the same parameters in a module's place (``structure/substitutes.py``)."""

    module: str


@dataclass(frozen=True)
class Factor:
    """Make a linear two, ``module.0`` without a bias and ``module.1``, with ``rank`` features between them.

    bias: whether the second has one, as the linear had.
    """

    module: str
    rank: int
    bias: bool = True

    @property
    def modules(self) -> tuple[str, ...]:
        """The linear whose tensors go."""
        return (self.module,)

    @property
    def upstream(self) -> tuple[str, ...]:
        """Nothing: it reads its input still."""
        return ()

    @property
    def made(self) -> tuple[str, ...]:
        """Tensors that a checkpoint holds after it and not before."""
        names = ("0.weight", "1.weight", "1.bias") if self.bias else ("0.weight", "1.weight")
        return tuple(f"{self.module}.{name}" for name in names)


@dataclass(frozen=True)
class Tabulate:
    """Put tables, a row for each timestep, in the place of linears that read the timestep alone.

    times: the timesteps as the model is given them, in its call's ``argument``, rising. sigmas: the same as noise
    levels, where they are known. upstream: modules between the timestep and the linears; what changes them, as a LoRA
    may, changes no table.
    """

    modules: tuple[str, ...]
    argument: int | str
    times: tuple[float, ...]
    sigmas: tuple[float, ...] = ()
    upstream: tuple[str, ...] = ()

    @property
    def made(self) -> tuple[str, ...]:
        """Tensors that a checkpoint holds after it and not before."""
        return tuple(f"{path}.rows" for path in self.modules)


Edit = Take | Scale | SetAttribute | GatherArgument | KeepBlocks | Substitute | Factor | Tabulate
_KINDS = {
    kind.__name__: kind
    for kind in (Take, Scale, SetAttribute, GatherArgument, KeepBlocks, Substitute, Factor, Tabulate)
}
COMPUTING = (SetAttribute, GatherArgument, Substitute)
"""Edits of what a module computes: no tensor of a state dict, of a file or of a LoRA changes by them."""
_LISTS = ("modules", "times", "sigmas", "upstream")
MAKING = (Factor, Tabulate)
"""Edits that put new tensors in the place of a module's: their values are not cut out of the old ones."""
MAX_UNITS = 2**26
"""Most entries of a dimension that an edit keeps: a list of them fits memory."""


# ------------------------------------------------------------------ compile


def compile_edits(module: nn.Module, axes: Sequence[Axis], kept: Kept) -> list[Edit]:
    """Return the edits that make ``module`` the model that ``kept`` describes.

    Slices are in original coordinates; block edits come last. Raises ValueError where a plan names an
    unknown axis, unit, or leaves an axis without a unit.
    """
    by_name = {axis.name: axis for axis in axes}
    for name, units in kept.items():
        if name not in by_name:
            raise ValueError(f"the plan names the axis {name!r}, which the model has not")
        if not units or list(units) != sorted(set(units)) or units[-1] >= by_name[name].units or units[0] < 0:
            raise ValueError(f"the plan keeps {list(units)[:8]} of the {by_name[name].units} units of {name!r}")
    gone = {
        (axis.stack, index)
        for name, units in kept.items()
        if (axis := by_name[name]).blocks
        for index in set(range(axis.units)) - set(units)
    }
    active = [
        axis
        for name, units in kept.items()
        if len(units) < (axis := by_name[name]).units and (axis.stack, axis.block) not in gone
    ]
    edits: list[Edit] = [Substitute(path) for path in dict.fromkeys(p for axis in active for p in axis.substitutes)]
    edits += _takes(module, active, kept)
    edits += _attributes(module, active, kept)
    for axis in active:
        edits += _followers(module, axis, np.asarray(kept[axis.name]))
    stacks = [(axis.blocks, kept[axis.name]) for axis in active if axis.blocks]
    edits += [keep_blocks(stack, units, tombstones=not stack.deletable) for stack, units in stacks]
    return edits


def keep_blocks(stack: Stack, units: tuple[int, ...], *, tombstones: bool) -> KeepBlocks:
    """Return the edit that leaves some blocks of a stack."""
    borrowed = stack.borrowed if tombstones else ()
    return KeepBlocks(stack.path, units, tombstones, stack.stream, stack.output, stack.returns, borrowed, stack.names)


def _takes(module: nn.Module, axes: Sequence[Axis], kept: Kept) -> list[Edit]:
    """Make one Take per tensor and dimension, whatever number of axes share it."""
    removed: dict[tuple[str, int], list[np.ndarray]] = {}
    for axis in axes:
        away = np.setdiff1d(np.arange(axis.units), kept[axis.name])
        for member in axis.members:
            if tensor_or_none(module, member.tensor) is None:
                continue
            removed.setdefault((member.tensor, member.dim), []).append(member.indices[away].ravel())
    edits: list[Edit] = []
    stored = module.state_dict(keep_vars=True).keys() if removed else ()
    for (name, dim), gone in sorted(removed.items(), key=lambda item: item[0]):
        stays = np.ones(tensor_at(module, name).shape[dim], dtype=bool)
        stays[np.concatenate(gone)] = False
        edits.append(Take(name, dim, tuple(np.flatnonzero(stays).tolist()), name in stored))
    return edits


def _attributes(module: nn.Module, axes: Sequence[Axis], kept: Kept) -> list[Edit]:
    """Make one SetAttribute per attribute, whatever number of axes it follows."""
    values: dict[tuple[str, str], float] = {}
    for axis in axes:
        count = len(kept[axis.name])
        for follow in axis.follows:
            key = (follow.module, follow.attribute)
            before = number_at(module, *key)
            step = before / axis.units if follow.step is None else follow.step
            values[key] = values.get(key, before) - step * (axis.units - count)
    return [SetAttribute(owner, name, round(value)) for (owner, name), value in sorted(values.items())]


def _followers(module: nn.Module, axis: Axis, units: np.ndarray) -> list[Edit]:
    """Call arguments and norms that follow an axis."""
    edits: list[Edit] = []
    share = len(units) / axis.units
    for gather in axis.gathers:
        index = tuple(np.sort(gather.indices[units].ravel()).tolist())
        edits.append(GatherArgument(gather.module, gather.argument, index, gather.dim, gather.indices.size))
    for norm in axis.across:
        # weight' = weight·sqrt(D/D'), eps' = eps·D/D': a masked norm divides by D, a compact one by D'.
        edits.append(SetAttribute(norm.path, norm.eps, float(eps_of(module, norm)) / share))
        edits.append(Scale(f"{norm.path}.weight", share**-0.5))
    return edits


def settle_norms(module: nn.Module, axes: Iterable[Axis]) -> None:
    """Write the epsilon of norms that leave it to their input's precision into them: it must not change with it."""
    for norm in {norm for axis in axes for norm in axis.across}:
        setattr(module.get_submodule(norm.path), norm.eps, eps_of(module, norm))


def eps_of(module: nn.Module, norm: Norm) -> float:
    """Return the epsilon that a norm adds; torch's own where it has none: that of float64, else that of float32."""
    owner = module.get_submodule(norm.path)
    eps = getattr(owner, norm.eps)
    if eps is not None:
        return float(eps)
    double = any(parameter.dtype == torch.float64 for parameter in owner.parameters())
    return torch.finfo(torch.float64 if double else torch.float32).eps


# ------------------------------------------------------------------ as data


def edits_as_data(edits: Iterable[Edit]) -> list[dict[str, Any]]:
    """Return JSON data; index lists as ranges ``[start, stop]``."""
    listed = []
    for edit in edits:
        data = {"edit": type(edit).__name__, **vars(edit)}
        if data.get("stored", False):
            del data["stored"]
        if "index" in data:
            data["index"] = as_ranges(data["index"])
        if "returns" in data:
            data["returns"] = [list(item) for item in data["returns"]]
            data["borrowed"] = list(data["borrowed"])
            data |= {"names": list(names)} if (names := data.pop("names")) else {}
        data |= {key: list(data[key]) for key in _LISTS if key in data}
        listed.append(data)
    return listed


def edits_from_data(listed: Iterable[Mapping[str, Any]]) -> list[Edit]:
    """Read edits back from a transform log; raise a UserError for a kind that is not known."""
    edits = []
    for entry in listed:
        data = dict(entry)
        kind = _KINDS.get(data.pop("edit", None))
        if kind is None:
            raise UserError(
                f"the plan has an edit of the kind {entry.get('edit')!r}; known are {', '.join(_KINDS)}",
                mend="Upgrade dit-compress",
            )
        if "index" in data:
            if sum(stop - start for start, stop in data["index"]) > MAX_UNITS:
                raise ValueError(f"an edit keeps more than {MAX_UNITS:,} entries")
            data["index"] = from_ranges(data["index"])
        if "returns" in data:
            data["returns"] = tuple(tuple(item) for item in data["returns"])
        lists = ("borrowed", "names", *_LISTS)
        data |= {key: tuple(data[key]) for key in lists if key in data}
        edits.append(kind(**data))
    return edits


def as_ranges(index: Sequence[int]) -> list[list[int]]:
    """Turn ``(0, 1, 2, 5)`` into ``[[0, 3], [5, 6]]``."""
    ranges: list[list[int]] = []
    for value in index:
        if ranges and ranges[-1][1] == value:
            ranges[-1][1] = value + 1
        else:
            ranges.append([value, value + 1])
    return ranges


def from_ranges(ranges: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Turn ``[[0, 3], [5, 6]]`` into ``(0, 1, 2, 5)``."""
    return tuple(chain.from_iterable(range(start, stop) for start, stop in ranges))


def span(values: Iterable[int]) -> str:
    """Return ``8`` where all are equal, else ``4–8``."""
    listed = sorted(set(values))
    return str(listed[0]) if len(listed) == 1 else f"{listed[0]}–{listed[-1]}"
