"""From units to facts: the members, masks and tables of a list of units, as facts about one block.

Paths are relative to the block here; :mod:`dit_compress.structure.observe.discover` puts them in their places.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_compress.structure.facts import Attention, FeedForward, Gather, MaskPoint, Member, Norm, UnitList
from dit_compress.structure.observe.probe import Prober, merged, noise_like
from dit_compress.structure.observe.trace import Change, Key, Trace
from dit_compress.structure.observe.units import Units, owners
from dit_compress.structure.record import map_tensors, tensors_in
from dit_compress.structure.substitutes import SUBSTITUTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.structure.observe.weightless import Replica
    from dit_compress.structure.record import Call

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class UnsliceableError(ValueError):
    """A unit is no slice of a parameter along one dimension."""


def make_unit_list(replica: Replica, base: Trace, units: Units, calls: Mapping[str, Call]) -> UnitList:
    """Describe units as a fact about one block. Raises UnsliceableError where the entries of a unit are no slices.

    calls: arguments of every module of the block that was called.
    """
    path = common_path(replica.module, [key[0] for key in units.owned], replica.cuts)
    members = tuple(_members(replica, base, units))
    across = tuple(_norm(replica.module, path) for path in replica.cuts if (path, ("in",)) in units.owned)
    masked = [key for key in units.rows if key[1] != ("out",)] if across else list(units.cols)
    masks = [point for key in masked for point in masks_of(replica, units, members, key, calls, outputs=bool(across))]
    width = max(units.owned[key].shape[1] for key in units.cols)
    made = Attention if width > 1 else FeedForward
    owners_of = {name.rpartition(".")[0] for name in (member.tensor for member in members)}
    stands = tuple(
        name
        for name, owner in replica.module.named_modules()
        if type(owner) in SUBSTITUTES and any(item == name or item.startswith(f"{name}.") for item in owners_of)
    )
    unit_list = made(path, "", 0, units.count, members, tuple(masks), across=across, substitutes=stands)
    return replace(unit_list, width=width) if isinstance(unit_list, Attention) else unit_list


def common_path(module: nn.Module, names: Sequence[str], modules: Sequence[str]) -> str:
    """Return the path of the innermost module, no list, that holds all of the named parameters and modules."""
    owners = [name if name in modules else name.rpartition(".")[0] for name in names]
    split = [owner.split(".") for owner in owners]
    shared: list[str] = []
    for level in zip(*split, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    while shared and isinstance(module.get_submodule(".".join(shared)), LISTS):
        shared.pop()
    return ".".join(shared)


def _members(replica: Replica, base: Trace, units: Units) -> list[Member]:
    shapes, biases = geometry(base)
    members: list[Member] = []
    for key in (*units.rows, *units.cols, *units.tables):
        if key[1] in (("in",), ("out",)):
            continue
        dim, indices = slices(units.owned[key], shapes.get(key), key[1])
        members.append(Member(key[0], dim, indices))
        if key in units.rows and key in biases:
            bias, order = biases[key]
            members.append(Member(bias[0], bias[1][0], order[units.owned[key]]))
    for path in replica.cuts:
        owned = units.owned.get((path, ("out",)))
        if owned is not None:
            norm = replica.module.get_submodule(path)
            members += [Member(f"{path}.{name}", 0, owned) for name, _ in norm.named_parameters()]
    return members


def geometry(base: Trace) -> tuple[dict[Key, tuple[int, ...]], dict[Key, tuple[Key, np.ndarray]]]:
    """Return the shape of every key; bias of every output, with the bias' entry for each of the output's entries."""
    shapes: dict[Key, tuple[int, ...]] = {}
    biases: dict[Key, tuple[Key, np.ndarray]] = {}
    for touch in base.touches:
        shapes[touch.rows.key] = touch.rows.shape
        if touch.cols is not None:
            shapes[touch.cols.key] = touch.cols.shape
        if touch.bias is not None:
            order = biases.get(touch.rows.key, (touch.bias.key, np.zeros(int(np.prod(touch.rows.shape)), int)))[1]
            order[touch.rows.index] = touch.bias.index
            biases[touch.rows.key] = (touch.bias.key, order)
    return shapes, biases


def slices(owned: np.ndarray, shape: tuple[int, ...] | None, dims: tuple[int, ...]) -> tuple[int, np.ndarray]:
    """Turn entries raveled over several dimensions into the one dimension along which every unit is a slice."""
    if len(dims) == 1 or shape is None:
        return dims[0], owned
    coordinates = np.unravel_index(owned, shape)
    for place, dim in enumerate(dims):
        rows = [np.unique(row) for row in coordinates[place]]
        others = int(np.prod(shape)) // shape[place]
        if len({len(row) for row in rows}) == 1 and len(rows[0]) * others == owned.shape[1]:
            return dim, np.array(rows)
    raise UnsliceableError("a unit is no slice of the parameter along one dimension")


def masks_of(
    replica: Replica, units: Units, members: Sequence[Member], key: Key, calls: Mapping[str, Call], *, outputs: bool
) -> list[MaskPoint]:
    """Return where a mask multiplies: a module's features, or a parameter that no called module of its own applies."""
    name = key[0]
    path, _, leaf = name.rpartition(".")
    owner = replica.module.get_submodule(path)
    plain = isinstance(owner, (nn.Linear, *CONVOLUTIONS)) and leaf == "weight" and path in calls
    if plain:
        dim = 1 if isinstance(owner, CONVOLUTIONS) else -1
        return [MaskPoint(path, "output" if outputs else "input", units.owned[key], dim)]
    tensors = {name} | (set(_bias_names(members, name)) if outputs else set())
    dims = {member.dim for member in members if member.tensor == name} & set(key[1])
    return [
        MaskPoint(member.tensor, "parameter", member.indices, member.dim)
        for member in members
        if member.tensor in tensors and (member.tensor != name or member.dim in dims)
    ]


def _bias_names(members: Sequence[Member], weight: str) -> list[str]:
    """Return the biases among the members that stand beside a weight."""
    path = weight.rpartition(".")[0]
    return [m.tensor for m in members if m.tensor.rpartition(".")[0] == path and "bias" in m.tensor]


def _norm(module: nn.Module, path: str) -> Norm:
    """Return the norm, with the attribute that holds its epsilon."""
    owner = module.get_submodule(path)
    names = [name for name in vars(owner) if "eps" in name and not name.startswith("_")]
    return Norm(path, names[0] if names else "eps")


# ------------------------------------------------------------------ tables among the call arguments


def gathers(prober: Prober, unit_list: UnitList, units: Units, call: Call) -> tuple[Gather, ...]:
    """Find arguments of the units' module that hold entries of units: RoPE over the inner width, tables per head."""
    columns = set(units.cols)
    found = []
    arguments: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    for key, value in arguments:
        tensors = [tensor for tensor in tensors_in(value) if tensor.is_floating_point() and tensor.ndim]
        if not tensors or not columns & prober.effect(_argument(unit_list.path, key, None, None)).keys():
            continue
        places = {
            (dim, tensor.shape[dim])
            for tensor in tensors
            for dim in range(-tensor.ndim, 0)
            if tensor.shape[dim] > 1 and tensor.shape[dim] % units.count == 0
        }
        tried = (_gather(prober, unit_list, units, key, *place) for place in sorted(places))
        found += [gather for gather in tried if gather is not None]
    return tuple(found)


def _gather(prober: Prober, unit_list: UnitList, units: Units, key: int | str, dim: int, size: int) -> Gather | None:
    def perturb(chosen: np.ndarray) -> Change:
        return _argument(unit_list.path, key, dim, (size, chosen))

    if not _in_one_unit(units, prober.effect(perturb(np.array([0])))):
        return None
    runs = prober.runs({("", ("argument",)): (size, perturb)})["", ("argument",)]
    owned = owners(units, [merged(runs, [entry]) for entry in range(size)])
    return None if owned is None else Gather(unit_list.path, key, owned, dim)


def _in_one_unit(units: Units, effect: Mapping[Key, frozenset[int]]) -> bool:
    found = {
        u
        for key, columns in effect.items()
        if key in units.cols
        for u, row in enumerate(units.owned[key])
        if columns & set(row.tolist())
    }
    return len(found) == 1


def _argument(path: str, key: int | str, dim: int | None, entries: tuple[int, np.ndarray] | None) -> Change:
    """Change numbers in a call argument: in all of it, or in some entries along a dimension of the given size."""

    def other(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = noise_like(tensor, 3)
        if dim is None or entries is None:
            return noise
        if tensor.ndim < -dim or tensor.shape[dim] != entries[0]:
            return tensor
        where = torch.zeros(entries[0], dtype=torch.bool)
        where[torch.from_numpy(entries[1])] = True
        return torch.where(where.reshape(-1, *[1] * (-dim - 1)), noise, tensor)

    def edit(args: Any, kwargs: Any) -> tuple[Any, Any]:
        if isinstance(key, int):
            return tuple(map_tensors(other, item) if place == key else item for place, item in enumerate(args)), kwargs
        return args, {**kwargs, key: map_tensors(other, kwargs[key])}

    return Change(argument=(path, edit))
