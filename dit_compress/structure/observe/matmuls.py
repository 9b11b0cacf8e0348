"""The matmuls of aten: which operand is a parameter, where its outputs and inputs run.

Each function gives the output that the watcher puts in the matmul's place; None where the parameter is not plain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dit_compress.structure.observe.dispatch import Watcher

_aten = torch.ops.aten


def _mm(mode: Watcher, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    return _product(mode, None, args[0], args[1])


def _addmm(mode: Watcher, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    return _product(mode, args[0], args[1], args[2])


def _product(mode: Watcher, bias: Any, a: Tensor, b: Tensor) -> Tensor | None:
    """``[..., T, in] @ [..., in, out]``, the weight on either side."""
    if b.is_meta:
        a = mode.realised(a)
        return mode.matmul((*a.shape[:-1], b.shape[-1]), b, -1, a, bias)
    if not a.is_meta:
        return None
    made = mode.matmul((*a.shape[:-2], b.shape[-1], a.shape[-2]), a, -2, b.transpose(-1, -2))
    return None if made is None else made.transpose(-1, -2)


def _mv(mode: Watcher, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    weight, x = args[-2], mode.realised(args[-1])
    if not weight.is_meta:
        return None
    return mode.matmul((weight.shape[0],), weight, 0, x, args[0] if len(args) > 2 else None)


def _linear(mode: Watcher, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    x, weight = mode.realised(args[0]), args[1]
    if not weight.is_meta:
        return None
    return mode.matmul((*x.shape[:-1], weight.shape[0]), weight, 0, x, args[2] if len(args) > 2 else None)


def _convolution(mode: Watcher, func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Channels are mixed like a linear's features; a depthwise convolution is no matmul."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    if not weight.is_meta or groups != 1 or transposed:
        return None
    x = mode.realised(x)
    meta = torch.empty(x.shape, device="meta", dtype=x.dtype)
    plain = None if bias is None else torch.empty(weight.shape[0], device="meta", dtype=x.dtype)
    shape = func(meta, weight, plain, *args[3:], **kwargs).movedim(1, -1).shape
    made = mode.matmul(shape, weight, 0, x.movedim(1, -1), bias)
    return None if made is None else made.movedim(-1, 1)


def _embedding(mode: Watcher, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    weight, index = args[0], args[1]
    return mode.matmul((*index.shape, weight.shape[1]), weight, 1, None)


MATMULS: dict[Any, Callable[..., Tensor | None]] = {
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.baddbmm.default: _addmm,
    _aten.mv.default: _mv,
    _aten.addmv.default: _mv,
    _aten.linear.default: _linear,
    _aten.convolution.default: _convolution,
    _aten.embedding.default: _embedding,
}
