"""Weights stored in fewer bits, expanded as the specification says.

Shapes: a scale (or palette) has one entry per block; an axis of n blocks spreads each over size/n places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_compress.core.errors import UserError
from dit_compress_plugins.export_coreml.mil.registry import ints, number, operator


@operator("constexpr_affine_dequantize")
def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Any) -> Tensor:
    """Compute ``(q - zero_point) · scale``, one of each per entry of the axis, or one for all (iOS 16)."""
    shape = [1] * quantized_data.ndim
    shape[int(number(axis))] = -1
    zero, factor = torch.as_tensor(zero_point).float(), torch.as_tensor(scale).float()
    zero = zero.reshape(shape) if zero.ndim else zero
    return (quantized_data.float() - zero) * (factor.reshape(shape) if factor.ndim else factor)


@operator("constexpr_blockwise_shift_scale")
def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Compute ``(q - offset) · scale`` with one scale per block (iOS 18)."""
    shifted = data.float() if offset is None else data.float() - _spread(offset.float(), list(data.shape))
    return shifted * _spread(scale.float(), list(data.shape))


@operator("constexpr_lut_to_dense")
def lut_to_dense(indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Any = None) -> Tensor:
    """Look up entries of a palette by their numbers.

    iOS 16: ``indices`` are packed bits, ``lut`` has rank 1, ``shape`` is the result's. iOS 18: ``indices`` have
    the result's shape, ``lut`` is ``[blocks …, entries, 1]``.
    """
    if shape is not None:
        size = ints(shape)
        count = int(torch.tensor(size).prod())
        return lut.float()[_unpacked(indices, len(lut), count)].reshape(size)
    if vector_axis is not None and lut.shape[-1] != 1:
        raise UserError("the interpreter has palettes of single values only", where="constexpr_lut_to_dense")
    spread = _spread(lut[..., 0].float(), [*indices.shape, lut.shape[-2]])
    return spread.gather(-1, indices.long()[..., None])[..., 0]


def _spread(blocks: Tensor, shape: list[int]) -> Tensor:
    """Repeat every entry over its block."""
    for axis, size in enumerate(shape):
        if blocks.shape[axis] != size:
            blocks = blocks.repeat_interleave(size // blocks.shape[axis], axis)
    return blocks


def _unpacked(packed: Tensor, entries: int, count: int) -> Tensor:
    """Unpack numbers of log2(entries) bits out of bytes, the lowest bit first."""
    bits = (entries - 1).bit_length()
    stream = (packed.long()[:, None] >> torch.arange(8)) & 1
    numbers = stream.reshape(-1)[: count * bits].reshape(count, bits)
    return (numbers << torch.arange(bits)).sum(-1)
