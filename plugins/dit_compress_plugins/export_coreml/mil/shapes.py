"""Operators that move values and compute none."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_compress.core.errors import UserError
from dit_compress_plugins.export_coreml.mil.registry import flag, ints, number, operator

PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}


@operator("reshape")
def reshape(x: Tensor, shape: Any) -> Tensor:
    """Reshape; −1 is inferred."""
    return x.reshape(ints(shape))


@operator("transpose")
def transpose(x: Tensor, perm: Any) -> Tensor:
    """Permute the axes."""
    return x.permute(ints(perm))


@operator("expand_dims")
def expand_dims(x: Tensor, axes: Any) -> Tensor:
    """Insert axes of size 1; the places count in the result."""
    chosen = ints(axes)
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("squeeze")
def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    """Remove axes of size 1."""
    return x.squeeze(ints(axes)) if axes is not None else x.squeeze()


@operator("concat")
def concat(values: list[Tensor], axis: Any, interleave: Any = False) -> Tensor:  # noqa: FBT002 - MIL's names
    """Join along an axis; interleaved means one entry of each in turn."""
    place = int(number(axis))
    if not flag(interleave):
        return torch.cat(values, place)
    joined = torch.stack(values, place % values[0].ndim + 1)
    return joined.flatten(place % values[0].ndim, place % values[0].ndim + 1)


@operator("stack")
def stack(values: list[Tensor], axis: Any) -> Tensor:
    """Join along a new axis."""
    return torch.stack(values, int(number(axis)))


@operator("split")
def split(x: Tensor, axis: Any, num_splits: Any = None, split_sizes: Any = None) -> tuple[Tensor, ...]:
    """Cut along an axis, in equal parts or in parts of given sizes."""
    place = int(number(axis))
    sizes = (
        ints(split_sizes)
        if split_sizes is not None
        else [x.shape[place] // int(number(num_splits))] * int(number(num_splits))
    )
    return x.split(sizes, place)


@operator("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    """Take ``x[begin:end:stride]`` per axis; a set mask means "from the edge"; squeezed axes take one entry."""
    chosen, drop = _chosen(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    for axis, entries in enumerate(chosen):
        x = x.index_select(axis, entries)
    return x.squeeze(drop) if drop else x


@operator("slice_update")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    """Put ``update`` into ``x`` at the entries that :func:`slice_by_index` takes."""
    chosen, _ = _chosen(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    written = x.clone()
    written[torch.meshgrid(*chosen, indexing="ij")] = update.reshape([len(entries) for entries in chosen])
    return written


def _chosen(
    x: Tensor, begin: Any, end: Any, stride: Any, masks: tuple[Any, Any, Any]
) -> tuple[list[Tensor], list[int]]:
    """Return the entries of each axis, and the axes that are squeezed."""
    zeros = [0] * x.ndim
    steps = ints(stride) if stride is not None else [1] * x.ndim
    no_begin, no_end, drop = (ints(mask) if mask is not None else zeros for mask in masks)
    found = []
    for axis, (first, last, step) in enumerate(zip(ints(begin), ints(end), steps, strict=True)):
        size = x.shape[axis]
        cut = slice(None if no_begin[axis] else first, None if no_end[axis] else last, step)
        chosen = [first % size] if drop[axis] else list(range(size))[cut]
        found.append(torch.tensor(chosen, dtype=torch.int64))
    return found, [axis for axis in range(x.ndim) if drop[axis]]


@operator("slice_by_size")
def slice_by_size(x: Tensor, begin: Any, size: Any) -> Tensor:
    """Take ``size`` entries from ``begin`` per axis; −1 means all that remain."""
    for axis, (first, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        start = first % x.shape[axis]
        x = x.narrow(axis, start, x.shape[axis] - start if count < 0 else count)
    return x


@operator("tile")
def tile(x: Tensor, reps: Any) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(ints(reps))


@operator("pad")
def pad(x: Tensor, pad: Any, mode: str = "constant", constant_val: Any = 0.0) -> Tensor:
    """Pad the last axes; MIL lists the first of them first."""
    edges = ints(pad)
    pairs = [edges[place : place + 2] for place in range(0, len(edges), 2)]
    while pairs and mode != "constant" and pairs[0] == [0, 0]:
        pairs = pairs[1:]
    flat = [edge for pair in reversed(pairs) for edge in pair]
    if mode == "constant":
        return F.pad(x, flat, value=number(constant_val))
    rest = x.shape[: x.ndim - len(pairs)]
    folded = x.reshape(1, -1, *x.shape[x.ndim - len(pairs) :])
    padded = F.pad(folded, flat, mode=PAD_MODES[mode])
    return padded.reshape(*rest, *padded.shape[2:])


@operator("gather")
def gather(x: Tensor, indices: Tensor, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False) -> Tensor:  # noqa: ARG001, FBT002 - MIL's names
    """Take entries of one axis."""
    if int(number(batch_dims)):
        raise UserError("the interpreter has gather without batch axes only", where="gather")
    place = int(number(axis)) % x.ndim
    index = torch.as_tensor(indices).long() % x.shape[place]
    taken = x.index_select(place, index.reshape(-1))
    return taken.reshape(*x.shape[:place], *index.shape, *x.shape[place + 1 :])


@operator("gather_along_axis")
def gather_along_axis(x: Tensor, indices: Tensor, axis: Any = 0, validate_indices: Any = False) -> Tensor:  # noqa: ARG001, FBT002 - MIL's names
    """Take one entry per place."""
    place = int(number(axis))
    return x.gather(place, indices.long() % x.shape[place])


@operator("pixel_shuffle")
def pixel_shuffle(x: Tensor, upscale_factor: Any) -> Tensor:
    """Map ``[N, C·r², H, W]`` to ``[N, C, H·r, W·r]``."""
    return F.pixel_shuffle(x, int(number(upscale_factor)))


@operator("pixel_unshuffle")
def pixel_unshuffle(x: Tensor, downscale_factor: Any) -> Tensor:
    """Map ``[N, C, H·r, W·r]`` to ``[N, C·r², H, W]``."""
    return F.pixel_unshuffle(x, int(number(downscale_factor)))


@operator("upsample_nearest_neighbor")
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1) -> Tensor:
    """Repeat rows and columns."""
    scale = (number(scale_factor_height), number(scale_factor_width))
    return F.interpolate(x, scale_factor=scale, mode="nearest")


@operator("reverse")
def reverse(x: Tensor, axes: Any = None) -> Tensor:
    """Flip axes."""
    return x.flip(ints(axes) if axes is not None else list(range(x.ndim)))


@operator("fill")
def fill(shape: Any, value: Any = 0.0) -> Tensor:
    """Make a constant tensor."""
    like = value if isinstance(value, Tensor) else torch.tensor(value)
    return like.reshape(()).expand(ints(shape)).clone()


@operator("shape")
def shape_of(x: Tensor) -> Tensor:
    """Return sizes of the axes."""
    return torch.tensor(x.shape, dtype=torch.int32)


@operator("band_part")
def band_part(x: Tensor, lower: Any = -1, upper: Any = -1) -> Tensor:
    """Keep a band around the diagonal; −1 keeps everything on that side."""
    below, above = int(number(lower)), int(number(upper))
    x = x if above < 0 else x.tril(above)
    return x if below < 0 else x.triu(-below)
