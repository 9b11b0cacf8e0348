"""An axis as a group of Torch-Pruning.

The library scores channels of layers that it knows. A unit is shown to it as one: for each tensor that the axis' units
own slices of, a linear whose row u is all that unit u owns of it. So heads, key-value groups, gate and value in one
projection, convolutions, single parameters and whole blocks are scored by the library's own formulas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch_pruning import prune_linear_out_channels
from torch_pruning.dependency import Dependency, Group, Node

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.structure.facts import Axis

Rows = dict[str, Tensor]
"""Name of a tensor (inside a block, on a block axis) → ``[U, n]``: what each unit owns of it."""


def rows_of(tensors: Mapping[str, Tensor], axis: Axis, *, vectors: bool) -> Rows:
    """Return what each unit owns, tensor by tensor; matrices alone, or ``vectors`` as well.

    A block that has no tensor of a name, or a smaller one, has zeros there: they add nothing to any sum.
    """
    least = 1 if vectors else 2
    if axis.blocks:
        return _block_rows(tensors, axis.blocks.blocks, least)
    rows = {}
    for member in axis.members:
        tensor = tensors.get(member.tensor)
        if tensor is not None and tensor.ndim >= least:
            rows[f"{member.tensor}/{member.dim}"] = (
                tensor.movedim(member.dim, 0)[torch.from_numpy(member.indices)].flatten(1).float()
            )
    return rows


def uneven(tensors: Mapping[str, Tensor], axis: Axis) -> str | None:
    """Return the name of a matrix that the blocks of a block axis have in different sizes, or not all of them have."""
    held = _by_name(tensors, axis.blocks.blocks, 2) if axis.blocks else {}
    for name, found in held.items():
        if len(found) < axis.units or len({tensor.shape for tensor in found.values()}) > 1:
            return name
    return None


def _by_name(tensors: Mapping[str, Tensor], blocks: Sequence[str], least: int) -> dict[str, dict[int, Tensor]]:
    held: dict[str, dict[int, Tensor]] = {}
    for index, block in enumerate(blocks):
        for name, tensor in tensors.items():
            if name.startswith(f"{block}.") and tensor.ndim >= least:
                held.setdefault(name.removeprefix(f"{block}."), {})[index] = tensor
    return held


def _block_rows(tensors: Mapping[str, Tensor], blocks: Sequence[str], least: int) -> Rows:
    rows = {}
    for name, found in _by_name(tensors, blocks, least).items():
        width = max(tensor.numel() for tensor in found.values())
        rows[name] = torch.zeros(len(blocks), width)
        for index, tensor in found.items():
            rows[name][index, : tensor.numel()] = tensor.flatten()
    return rows


def library_group(weights: Rows, gradients: Rows | None) -> Group:
    """Make the library's group of an axis: a linear for each tensor, a channel for each unit."""
    group = Group()
    for name, rows in weights.items():
        layer = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(rows)
        if gradients is not None:
            layer.weight.grad = gradients[name]
        node = Node(layer, None, name)
        units = list(range(rows.shape[0]))
        group.add_dep(Dependency(prune_linear_out_channels, prune_linear_out_channels, node, node), units)
        group[-1].root_idxs = units
    return group
