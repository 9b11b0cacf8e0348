"""The price of a plan, in parameters, FLOPs or seconds: separable over blocks and units, exact per block.

``fixed + Σ over blocks that stay of (rest + Σ over the block's axes of kept · unit)``. Axes that stand in
no stack whose blocks may go count with the fixed part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_compress.model.cut import compact
from dit_compress.model.figures import count_flops
from dit_compress.structure.copies import deep_copy
from dit_compress.structure.edits import keep_blocks
from dit_compress.structure.lookup import tensor_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from torch import nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Axis, Kept


@dataclass(frozen=True)
class Price:
    """The weight of each piece of a model.

    fixed: what no plan removes. blocks: block axis name → what each block weighs without its units.
    units: axis name → one unit. unit: what is counted (``parameters``, ``FLOPs``, ``seconds``).
    """

    fixed: float
    blocks: Mapping[str, tuple[float, ...]]
    units: Mapping[str, float]
    unit: str = "parameters"

    def of(self, axes: Sequence[Axis], kept: Kept) -> float:
        """Weigh a plan; an axis that is not named stays whole."""
        total, gated = self.fixed, gates(axes)
        for axis in axes:
            if axis.blocks:
                total += sum(self.blocks[axis.name][index] for index in kept.get(axis.name, range(axis.units)))
                continue
            gate = gated.get(axis.stack)
            if gate is None or axis.block is None or axis.block in kept.get(gate.name, range(gate.units)):
                total += self.units[axis.name] * len(kept.get(axis.name, range(axis.units)))
        return total

    def as_data(self) -> dict[str, Any]:
        """Return JSON data."""
        blocks = {name: list(rest) for name, rest in self.blocks.items()}
        return {"unit": self.unit, "fixed": self.fixed, "blocks": blocks, "units": dict(self.units)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Price:
        """Read back from JSON data."""
        blocks = {name: tuple(rest) for name, rest in data["blocks"].items()}
        return cls(data["fixed"], blocks, dict(data["units"]), data["unit"])


def gates(axes: Sequence[Axis]) -> dict[str, Axis]:
    """Return the stacks whose blocks may go: path → block axis."""
    return {axis.blocks.path: axis for axis in axes if axis.blocks}


def inside(axes: Sequence[Axis], gate: Axis, index: int) -> list[Axis]:
    """Return the axes of one block."""
    path = gate.blocks.path if gate.blocks else gate.stack
    return [axis for axis in axes if not axis.blocks and (axis.stack, axis.block) == (path, index)]


def alike_blocks(price: Price, axes: Sequence[Axis], gate: Axis) -> list[list[int]]:
    """Group a stack's blocks by what they weigh, with what stands in them: whichever of a group goes, as much goes."""

    def weighs(index: int) -> Hashable:
        held = sorted((axis.level, axis.units, f"{price.units[axis.name]:.9g}") for axis in inside(axes, gate, index))
        return f"{price.blocks[gate.name][index]:.9g}", tuple(held)

    return classes(range(gate.units), weighs)


# ------------------------------------------------------------------ parameters


def parameter_price(module: nn.Module, axes: Sequence[Axis]) -> Price:
    """Price parameters, from the members of the axes."""
    units = {axis.name: float(unit_cost(module, axis)) for axis in axes if not axis.blocks}
    whole: dict[str, list[float]] = {}
    for gate in gates(axes).values():
        own = unit_cost(module, gate)
        whole[gate.name] = [float(own + block) for block in _alone(module, gate)]
    total = sum(parameter.numel() for parameter in module.parameters())
    return assemble(axes, total, whole, units, "parameters")


def _alone(module: nn.Module, gate: Axis) -> list[int]:
    """Count parameters that go with each block of a stack: used nowhere else, and kept by no tombstone."""
    stack = gate.blocks
    assert stack is not None
    stays = tuple(f"{path}." for path in keep_blocks(stack, (), tombstones=not stack.deletable).spared())
    users: dict[int, set[str]] = {}
    sizes: dict[int, int] = {}
    counts = dict.fromkeys(stack.blocks, 0)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        place = "" if name.startswith(stays) else next((path for path in counts if name.startswith(f"{path}.")), "")
        users.setdefault(id(parameter), set()).add(place)
        sizes[id(parameter)] = parameter.numel()
    for key, found in users.items():
        if len(found) == 1 and (index := next(iter(found))):
            counts[index] += sizes[key]
    return list(counts.values())


def unit_cost(module: nn.Module, axis: Axis) -> int:
    """Count parameters of one unit (of a block axis: those outside the blocks)."""
    count = 0
    for member in axis.members:
        tensor = tensor_or_none(module, member.tensor)
        if tensor is not None:
            count += tensor.numel() // tensor.shape[member.dim] * member.indices.shape[1]
    return count


def assemble(
    axes: Sequence[Axis], total: float, whole: Mapping[str, Sequence[float]], units: Mapping[str, float], unit: str
) -> Price:
    """Make a price of the model's total, the weight of each block with all its units, and that of a unit."""
    blocks = {}
    for gate in gates(axes).values():
        held = [sum(units[axis.name] * axis.units for axis in inside(axes, gate, index)) for index in range(gate.units)]
        blocks[gate.name] = tuple(block - own for block, own in zip(whole[gate.name], held, strict=True))
    free = sum(units[axis.name] * axis.units for axis in axes if not axis.blocks and axis.stack not in gates(axes))
    return Price(total - sum(map(sum, whole.values())) - free, blocks, dict(units), unit)


# ------------------------------------------------------------------ FLOPs


def flops_price(denoiser: Denoiser, axes: Sequence[Axis], size_THW: tuple[int, int, int]) -> Price:
    """Price FLOPs of one call for one sample, attention included; the denoiser stands on the meta device.

    Each kind of axis and of block is priced by what the count falls by where some of it are taken away.
    """

    def count(kept: Kept) -> float:
        variant = deep_copy(denoiser)
        if kept:
            compact(variant, axes, kept)
        return float(count_flops(variant, size_THW))

    total = count({})
    units: dict[str, float] = {}
    for alike in classes([axis for axis in axes if not axis.blocks], lambda axis: axis_kind(denoiser.module, axis)):
        width, gone = alike[0].units, alike[0].units // 2
        kept: Kept = {axis.name: tuple(range(width - gone)) for axis in alike}
        each = (total - count(kept)) / (gone * len(alike)) if gone else 0.0
        units |= {axis.name: each for axis in alike}
    whole: dict[str, list[float]] = {}
    for gate in gates(axes).values():
        whole[gate.name] = [0.0] * gate.units
        for kind in classes(range(gate.units), lambda index, gate=gate: block_kind(denoiser.module, gate, index)):  # type: ignore[misc]
            rest = tuple(index for index in range(gate.units) if index != kind[0])
            each = total - count({gate.name: rest}) if rest else 0.0
            for index in kind:
                whole[gate.name][index] = each
    return assemble(axes, total, whole, units, "FLOPs")


def classes(items: Sequence[Any], kind: Callable[[Any], Hashable]) -> list[list[Any]]:
    """Group items of equal kind, in order of first appearance."""
    found: dict[Hashable, list[Any]] = {}
    for item in items:
        found.setdefault(kind(item), []).append(item)
    return list(found.values())


def axis_kind(module: nn.Module, axis: Axis) -> Hashable:
    """Return what is equal for axes at the same place of blocks that are alike."""
    place = axis.block_path
    members = [
        (member.tensor.replace(place, ""), member.dim, member.indices.shape, tuple(tensor.shape))
        for member in axis.members
        if (tensor := tensor_or_none(module, member.tensor)) is not None
    ]
    return axis.level, axis.stack, axis.name.replace(place, ""), axis.units, tuple(members)


def block_kind(module: nn.Module, gate: Axis, index: int) -> Hashable:
    """Return a value that is equal for blocks with equal parameters."""
    assert gate.blocks is not None
    block = module.get_submodule(gate.blocks.block(index))
    return tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
