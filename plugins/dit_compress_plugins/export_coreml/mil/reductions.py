"""Reductions over axes, and cumulative sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_compress_plugins.export_coreml.mil.registry import OPERATORS, flag, ints, number, operator

REDUCTIONS = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


def _reduction(compute: Any) -> Any:
    def function(x: Tensor, axes: Any = None, keep_dims: Any = False) -> Tensor:  # noqa: FBT002 - MIL's names
        chosen = ints(axes) if axes is not None else list(range(x.ndim))
        return compute(x, chosen, flag(keep_dims))

    return function


OPERATORS.update({name: _reduction(compute) for name, compute in REDUCTIONS.items()})


@operator("reduce_argmax")
def reduce_argmax(x: Tensor, axis: Any = -1, keep_dims: Any = True, output_dtype: str = "int32") -> Tensor:  # noqa: ARG001, FBT002 - MIL's names
    """Return the place of the largest value."""
    return x.argmax(int(number(axis)), keepdim=flag(keep_dims)).to(torch.int32)


@operator("cumsum")
def cumsum(x: Tensor, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Tensor:  # noqa: FBT002 - MIL's names
    """Sum along one axis as it goes, from either end, with or without the value itself."""
    place = int(number(axis))
    x = x.flip(place) if flag(reverse) else x
    total = x.cumsum(place)
    total = total - x if flag(exclusive) else total
    return total.flip(place) if flag(reverse) else total
