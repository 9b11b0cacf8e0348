"""Importance of units, from weights or from derivatives of a loss; pure functions of tensors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.structure.lookup import tensor_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dit_compress.structure.facts import Axis


def unit_norms(weight: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Return the L2 norm of each unit's slices of one tensor: ``indices [U,k]`` along ``dim`` → ``[U]``."""
    others = [axis for axis in range(weight.ndim) if axis != dim]
    squares = weight.float().square().sum(dim=others) if others else weight.float().square()
    return squares[indices].sum(dim=1).sqrt()


def magnitude(module: nn.Module, axis: Axis) -> Tensor:
    """Measure the magnitude of one axis' units ``[U]``, see :func:`magnitudes`."""
    return magnitudes(module, [axis])[axis.name]


@torch.no_grad()
def magnitudes(module: nn.Module, axes: Sequence[Axis]) -> dict[str, Tensor]:
    """Measure the magnitude of the units ``[U]`` of axes: mean over tensors of unit norms, each scaled to mean 1.

    A block's magnitude is the mean norm of its matrices, each scaled likewise over the blocks that have one of its
    name (SD3's last block lacks some). All that is measured of a tensor is measured at once: it may lie on disk.
    """
    measured: dict[str, list[tuple[Axis, Any, Callable[[Tensor], Tensor]]]] = {}
    for axis in axes:
        for name, key, measure in _block_norms(module, axis) if axis.blocks else _member_norms(axis):
            measured.setdefault(name, []).append((axis, key, measure))
    norms: dict[str, dict[Any, Tensor]] = {axis.name: {} for axis in axes}
    for name, wanted in measured.items():
        tensor = tensor_or_none(module, name)
        if tensor is None or tensor.ndim < 2:
            continue
        for axis, key, measure in wanted:
            norms[axis.name][key] = measure(tensor)
    return {axis.name: (_block_mean if axis.blocks else _mean)(axis, norms[axis.name]) for axis in axes}


def _member_norms(axis: Axis) -> Iterator[tuple[str, int, Callable[[Tensor], Tensor]]]:
    """Yield the tensors of an axis, the place of each among them, and what is measured of it."""
    for place, member in enumerate(axis.members):
        yield member.tensor, place, partial(unit_norms, dim=member.dim, indices=torch.from_numpy(member.indices))


def _block_norms(module: nn.Module, axis: Axis) -> Iterator[tuple[str, tuple[str, int], Callable[[Tensor], Tensor]]]:
    """Yield the tensors of a stack, the name in the block and the block's index of each, and what is measured of it."""
    assert axis.blocks is not None
    for index in range(axis.units):
        block = axis.blocks.block(index)
        for name, _ in module.get_submodule(block).named_parameters():
            yield f"{block}.{name}", (name, index), lambda weight: weight.float().norm()


def _mean(axis: Axis, norms: Mapping[int, Tensor]) -> Tensor:  # noqa: ARG001 - as the other
    places = sorted(norms)
    return torch.stack([norms[place] / norms[place].mean().clamp_min(1e-12) for place in places]).mean(dim=0)


def _block_mean(axis: Axis, norms: Mapping[tuple[str, int], Tensor]) -> Tensor:
    names: dict[str, dict[int, Tensor]] = {}
    for name, index in norms:
        names.setdefault(name, {})[index] = norms[name, index]
    scores: list[list[Tensor]] = [[] for _ in range(axis.units)]
    for found in names.values():
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
