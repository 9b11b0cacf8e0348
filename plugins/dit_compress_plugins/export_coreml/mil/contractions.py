"""Matrix products, convolutions, attention, and norms that stand as one operator.

Shapes: N batch, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_compress.core.errors import UserError
from dit_compress_plugins.export_coreml.mil.registry import flag, ints, number, operator

CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
CONV_TRANSPOSE = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


@operator("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x · weightᵀ + bias``."""
    return F.linear(x, weight, bias)


@operator("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:  # noqa: FBT002 - MIL's names
    """Compute a batched product; either side may be transposed first."""
    x = x.transpose(-1, -2) if flag(transpose_x) else x
    y = y.transpose(-1, -2) if flag(transpose_y) else y
    return x @ y


@operator("einsum")
def einsum(values: list[Tensor], equation: str) -> Tensor:
    """Contract two operands by MIL's own equations."""
    return torch.einsum(equation, *values)


@operator("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> Tensor:
    """Convolve in one to three dimensions; unequal padding is made beforehand."""
    spatial = x.ndim - 2
    stride = ints(strides) if strides is not None else [1] * spatial
    dilation = ints(dilations) if dilations is not None else [1] * spatial
    edges = _edges(x, weight, stride, dilation, pad_type, ints(pad) if pad is not None else [0] * 2 * spatial)
    if any(edges):
        x = F.pad(x, _last_axis_first(edges))
    return CONV[x.ndim](x, weight, bias, stride=stride, dilation=dilation, groups=int(number(groups)))


@operator("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: Any = 1,
    output_shape: Any = None,
) -> Tensor:
    """Convolve transposed; with an output shape, the end of each axis is extended to it."""
    spatial = x.ndim - 2
    stride = ints(strides) if strides is not None else [1] * spatial
    dilation = ints(dilations) if dilations is not None else [1] * spatial
    edges = ints(pad) if pad is not None and pad_type == "custom" else [0] * 2 * spatial
    extra = [0] * spatial
    if output_shape is not None:
        for axis, size in enumerate(ints(output_shape)[2:]):
            reach = (weight.shape[2 + axis] - 1) * dilation[axis] + 1
            extra[axis] = size - ((x.shape[2 + axis] - 1) * stride[axis] - 2 * edges[2 * axis] + reach)
    return CONV_TRANSPOSE[x.ndim](
        x, weight, bias, stride=stride, padding=edges[::2], output_padding=extra, groups=int(number(groups)),
        dilation=dilation,
    )  # fmt: skip


@operator("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Compute ``softmax(q·kᵀ/sqrt(K) + mask)·v``; MIL's operator has no scale."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)


@operator("layer_norm")
def layer_norm(
    x: Tensor, axes: Any = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Any = 1e-5
) -> Tensor:
    """Normalise over the last axes."""
    chosen = sorted(axis % x.ndim for axis in ints(axes)) if axes is not None else list(range(x.ndim))
    if chosen != list(range(x.ndim - len(chosen), x.ndim)):
        raise UserError(f"the interpreter has layer_norm over the last axes only, not {chosen}", where="layer_norm")
    return F.layer_norm(x, [x.shape[axis] for axis in chosen], gamma, beta, number(epsilon))


@operator("instance_norm")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Any = 1e-5) -> Tensor:
    """Normalise over the spatial axes."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=number(epsilon))


@operator("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Any = 1e-5,
) -> Tensor:
    """Normalise with the statistics of the file."""
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=number(epsilon))


@operator("l2_norm")
def l2_norm(x: Tensor, epsilon: Any = 1e-6) -> Tensor:
    """Compute ``x / sqrt(Σx² + epsilon)`` over the last three axes."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + number(epsilon))


def _edges(
    x: Tensor, weight: Tensor, stride: list[int], dilation: list[int], pad_type: str, pad: list[int]
) -> list[int]:
    """Return the padding before and after every spatial axis."""
    if pad_type == "custom":
        return pad
    if pad_type == "valid":
        return [0] * len(pad)
    edges = []
    for axis, (step, spread) in enumerate(zip(stride, dilation, strict=True)):
        size, reach = x.shape[2 + axis], (weight.shape[2 + axis] - 1) * spread + 1
        total = max(0, (-(-size // step) - 1) * step + reach - size)
        small, large = total // 2, total - total // 2
        edges += [large, small] if pad_type == "same_lower" else [small, large]
    return edges


def _last_axis_first(edges: list[int]) -> list[int]:
    """Reverse the pairs: MIL lists the first axis first, ``F.pad`` the last."""
    pairs = [edges[place : place + 2] for place in range(0, len(edges), 2)]
    return [edge for pair in reversed(pairs) for edge in pair]
