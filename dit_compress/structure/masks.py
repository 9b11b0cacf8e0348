"""Masks: multiply units by 0 … 1 while the model stays whole (Eq. 3 and 4), as forward hooks.

A value tensor is ``[units]`` (shared by the batch) or ``[B, units]`` (one draw per sample).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.structure.lookup import (
    argument_at,
    fields_of,
    holds_tensors,
    output_at,
    with_fields,
    with_output,
)
from dit_compress.structure.record import map_tensors
from dit_compress.structure.tombstone import Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dit_compress.structure.facts import Axis, Kept, MaskPoint


@contextmanager
def masked(module: nn.Module, axes: Sequence[Axis], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Mask the axes named in ``values`` for as long as the context is open.

    A block axis mixes each block with its input, ``y = m·block(x) + (1 - m)·x`` (Eq. 3); a head or
    channel axis multiplies projections (Eq. 4), which compacts exactly even under a norm across heads.
    """
    handles = []
    for axis in axes:
        value = values.get(axis.name)
        if value is None:
            continue
        if axis.blocks:
            stack = axis.blocks
            skip = Skip(stack.stream, stack.output, stack.returns)
            for index in range(axis.units):
                block = module.get_submodule(stack.block(index))
                before = _Before() if stack.writes else None
                if before is not None:
                    handles.append(block.register_forward_pre_hook(before.note, with_kwargs=True))
                handles.append(block.register_forward_hook(_mix(value[..., index], skip, before), with_kwargs=True))
        handles += [_mask(module, value, point) for point in axis.masks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hard_masks(axes: Sequence[Axis], kept: Kept, like: Tensor) -> dict[str, Tensor]:
    """Return a plan as masks of ones and zeros."""
    values = {}
    for axis in axes:
        if axis.name in kept:
            value = torch.zeros(axis.units)
            value[list(kept[axis.name])] = 1
            values[axis.name] = value.to(like)
    return values


def _mask(module: nn.Module, value: Tensor, point: MaskPoint) -> Any:
    """Put one mask in place; the handle takes it away again."""
    if point.side == "parameter":
        return _MaskedParameter(module, value, point)
    owner = module.get_submodule(point.module)
    if point.side in NORMS:
        return _CountedNorm(owner, value, point)
    if point.side == "output":
        return owner.register_forward_hook(lambda _m, _a, output: _scaled(output, value, point))
    return owner.register_forward_pre_hook(lambda _m, args: (_scaled(args[0], value, point), *args[1:]))


def _scaled(x: Tensor, value: Tensor, point: MaskPoint) -> Tensor:
    """Multiply the features of every unit by its mask."""
    scale = per_feature(value, point, x.shape[point.dim]).to(x.dtype)
    shape = [1] * x.ndim
    shape[point.dim] = scale.shape[-1]
    if scale.ndim > 1:
        shape[0] = scale.shape[0]
    return x * scale.reshape(shape)


def per_feature(value: Tensor, point: MaskPoint, size: int) -> Tensor:
    """Spread units ``[..., U]`` over features ``[..., size]``; 1 where no unit owns the feature."""
    width = point.indices.shape[1]
    order = torch.from_numpy(point.indices.reshape(-1)).to(value.device)
    spread = value.repeat_interleave(width, dim=-1)
    return torch.ones(*value.shape[:-1], size, dtype=value.dtype, device=value.device).index_copy(-1, order, spread)


NORMS = ("rms", "moments")
"""Sides of norms whose statistics count the kept alone: by the mean square; by the mean and the variance."""


class _CountedNorm:
    """A norm whose mean counts the kept alone, which is the norm of them: ``y = f(c·z) / c`` with ``c² = D / Σm``.

    For a norm by the mean square ``z = m·x``: the mean over all D of ``(c·z)²`` is that over the kept of ``x²``. For
    one by mean and variance ``z = m·(x - μ)``, with the mean μ of the kept. So the norm itself, its epsilon included,
    is asked as it is; a bias is not divided.
    """

    def __init__(self, owner: nn.Module, value: Tensor, point: MaskPoint) -> None:
        self.owner, self.value, self.point = owner, value, point
        self.handles = [owner.register_forward_pre_hook(self._before), owner.register_forward_hook(self._after)]

    def _before(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        mask, factor = self._mask(x)
        if self.point.side == "moments":
            x = x - (mask * x).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
        return factor * mask * x, *args[1:]

    def _after(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        _, factor = self._mask(output)
        bias = getattr(self.owner, "bias", None)
        return output / factor if bias is None else (output - bias) / factor + bias

    def _mask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask, and the factor ``c`` beside it, as they multiply ``x [..., D]``."""
        mask = per_feature(self.value, self.point, x.shape[-1]).to(x.dtype)
        mask = mask.reshape(*mask.shape[:-1], *[1] * (x.ndim - mask.ndim), mask.shape[-1])
        return mask, (mask.shape[-1] / mask.sum(-1, keepdim=True)).sqrt()

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()


class _MaskedParameter:
    """A parameter times its mask, for as long as the handle lives."""

    def __init__(self, module: nn.Module, value: Tensor, point: MaskPoint) -> None:
        if value.ndim > 1:
            raise UserError("takes masks that the whole batch shares, not one per sample", where=point.module)
        path, _, self.leaf = point.module.rpartition(".")
        self.owner = module.get_submodule(path)
        self.parameter = getattr(self.owner, self.leaf)
        # As a plain attribute, so that the product stays differentiable with respect to the mask.
        delattr(self.owner, self.leaf)
        setattr(self.owner, self.leaf, _scaled(self.parameter, value, point))

    def remove(self) -> None:
        """Put the parameter back."""
        delattr(self.owner, self.leaf)
        setattr(self.owner, self.leaf, self.parameter)


class _Before:
    """The arguments of a block that writes into them, as they came."""

    def note(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy the arguments before the block runs."""
        self.args, self.kwargs = map_tensors(Tensor.clone, (args, kwargs))


def _mix(value: Tensor, skip: Skip, given: _Before | None = None) -> Callable[..., Any]:
    """Make ``y = m·block(x) + (1 - m)·x`` of every stream of the block. given: arguments it has overwritten."""

    def mixed(after: Any, before: Any) -> Any:
        if not isinstance(after, Tensor) or not isinstance(before, Tensor):
            if isinstance(after, Tensor) or not holds_tensors(after):
                return after
            held = fields_of(before)
            fields = {name: mixed(item, held.get(name)) for name, item in fields_of(after).items()}
            return with_fields(after, fields)
        keep = value.to(after.dtype)
        keep = keep if keep.ndim == 0 else keep.reshape(-1, *[1] * (after.ndim - 1))
        return keep * after + (1 - keep) * before

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        if given is not None:
            args, kwargs = given.args, given.kwargs
        if skip.output is not None and not skip.returns:
            before = argument_at(args, kwargs, skip.stream)
            return with_output(result, skip.output, mixed(output_at(result, skip.output), before))
        return mixed(result, skip(args, kwargs))

    return hook
