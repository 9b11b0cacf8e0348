"""Masks: multiply units by 0 … 1 while the model stays whole (Eq. 3 and 4), as forward hooks.

A value tensor is ``[units]`` (shared by the batch) or ``[B, units]`` (one draw per sample).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dit_compress.structure.axes import Axis, Kept, MaskPoint


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
            for index in range(axis.units):
                block = module.get_submodule(axis.blocks.block(index))
                hook = _skip(value[..., index], axis.blocks.stream, axis.blocks.output)
                handles.append(block.register_forward_hook(hook, with_kwargs=True))
        for point in axis.masks:
            owner = module.get_submodule(point.module)
            scale = _per_feature(value, point)
            if point.side == "output":
                handles.append(owner.register_forward_hook(_scale_output(scale)))
            else:
                handles.append(owner.register_forward_pre_hook(_scale_input(scale)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hard_masks(axes: Sequence[Axis], kept: Kept, like: Tensor) -> dict[str, Tensor]:
    """A plan as masks of ones and zeros."""
    values = {}
    for axis in axes:
        if axis.name in kept:
            value = torch.zeros(axis.units, dtype=like.dtype, device=like.device)
            value[list(kept[axis.name])] = 1
            values[axis.name] = value
    return values


def _per_feature(value: Tensor, point: MaskPoint) -> Tensor:
    """Units → features, through the point's index map."""
    units, width = point.indices.shape
    order = torch.from_numpy(point.indices.reshape(-1)).to(value.device)
    spread = value.repeat_interleave(width, dim=-1)
    return spread[..., torch.argsort(order)] if units * width else spread


def _fit(scale: Tensor, to: Tensor) -> Tensor:
    """``[D]`` or ``[B,D]`` shaped to multiply ``[B,…,D]``."""
    scale = scale.to(to.dtype)
    return scale if scale.ndim == 1 else scale.reshape(scale.shape[0], *[1] * (to.ndim - 2), scale.shape[-1])


def _scale_output(scale: Tensor) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * _fit(scale, output)

    return hook


def _scale_input(scale: Tensor) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * _fit(scale, args[0]), *args[1:])

    return hook


def _skip(value: Tensor, stream: int | str, output: int | None) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        before = args[stream] if isinstance(stream, int) else kwargs[stream]
        after = result if output is None else result[output]
        keep = value.to(after.dtype)
        keep = keep if keep.ndim == 0 else keep.reshape(-1, *[1] * (after.ndim - 1))
        mixed = keep * after + (1 - keep) * before
        return mixed if output is None else (*result[:output], mixed, *result[output + 1 :])

    return hook
