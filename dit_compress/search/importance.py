"""Importance of units, from weights or from derivatives of a loss; pure functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dit_compress.structure.lookup import tensor_or_none

if TYPE_CHECKING:
    from dit_compress.structure.facts import Axis


def unit_norms(weight: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Return the L2 norm of each unit's slices of one tensor: ``indices [U,k]`` along ``dim`` → ``[U]``."""
    others = [axis for axis in range(weight.ndim) if axis != dim]
    squares = weight.float().square().sum(dim=others) if others else weight.float().square()
    return squares[indices].sum(dim=1).sqrt()


def magnitude(module: nn.Module, axis: Axis) -> Tensor:
    """Measure the magnitude of an axis' units ``[U]``: mean over tensors of the unit norms, each scaled to mean 1.

    A block's magnitude is the mean norm of its matrices, each scaled likewise over the blocks that have one of its
    name (SD3's last block lacks some).
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
    norms: dict[str, dict[int, Tensor]] = {}
    for index in range(axis.units):
        for name, parameter in module.get_submodule(stack.block(index)).named_parameters():
            if parameter.ndim > 1:
                norms.setdefault(name, {})[index] = parameter.float().norm()
    scores: list[list[Tensor]] = [[] for _ in range(axis.units)]
    for found in norms.values():
        mean = torch.stack(list(found.values())).mean().clamp_min(1e-12)
        for index, norm in found.items():
            scores[index].append(norm / mean)
    return torch.stack([torch.stack(own).mean() if own else torch.zeros(()) for own in scores])


def taylor(slopes_SU: Tensor) -> Tensor:
    """Return the root mean square over samples: ``[samples, units]`` → ``[units]``.

    Squared per sample, since derivatives of both signs cancel in the sum over a trained model's samples.
    """
    return slopes_SU.square().mean(dim=0).sqrt()


def top(scores: Tensor, count: int) -> tuple[int, ...]:
    """Return the ``count`` best units, ascending; ties go to the lower index."""
    order = torch.argsort(scores, descending=True, stable=True)[:count]
    return tuple(sorted(order.tolist()))
