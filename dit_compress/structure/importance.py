"""Importance of units from weights alone; pure functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dit_compress.structure.edits import tensor_or_none

if TYPE_CHECKING:
    from dit_compress.structure.axes import Axis


def unit_norms(weight: Tensor, dim: int, indices: Tensor) -> Tensor:
    """L2 norm of each unit's slices of one tensor: ``indices [U,k]`` along ``dim`` → ``[U]``."""
    others = [axis for axis in range(weight.ndim) if axis != dim]
    squares = weight.float().square().sum(dim=others) if others else weight.float().square()
    return squares[indices].sum(dim=1).sqrt()


def magnitude(module: nn.Module, axis: Axis) -> Tensor:
    """Magnitude of an axis' units ``[U]``: mean over tensors of the unit norms, each scaled to mean 1.

    A block's magnitude is the mean absolute weight of its matrices, scaled likewise by position in the block.
    """
    if axis.blocks:
        return _block_magnitude(module, axis)
    scores = []
    for member in axis.members:
        tensor = tensor_or_none(module, member.tensor)
        if tensor is None or tensor.ndim < 2:
            continue
        norms = unit_norms(tensor, member.dim, torch.from_numpy(member.indices))
        scores.append(norms / norms.mean().clamp_min(1e-12))
    return torch.stack(scores).mean(dim=0)


def _block_magnitude(module: nn.Module, axis: Axis) -> Tensor:
    stack = axis.blocks
    assert stack is not None
    blocks = [module.get_submodule(stack.block(index)) for index in range(axis.units)]
    rows = [torch.stack([p.float().norm() for p in block.parameters() if p.ndim > 1]) for block in blocks]
    norms = torch.stack(rows)
    return (norms / norms.mean(dim=0, keepdim=True).clamp_min(1e-12)).mean(dim=1)


def top(scores: Tensor, count: int) -> tuple[int, ...]:
    """The ``count`` best units, ascending; ties go to the lower index."""
    order = torch.argsort(scores, descending=True, stable=True)[:count]
    return tuple(sorted(order.tolist()))
