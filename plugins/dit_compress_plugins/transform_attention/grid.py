"""The token grid (T, H, W) of a model's call, read off its arguments.

Shapes: T H W tokens along frames, height, width; S all of them.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.record import Call

SIZES = ((3, 4, 5), (5, 3, 7))
"""Two grids of tokens at which a model is watched; no axis, and no product of axes, grows like another."""
TEXT_LENGTH = 11


class Grids:
    """The grids of the last calls, by their number of tokens: a block may be run again after its model's call."""

    def __init__(self) -> None:
        self.by_tokens: dict[int, tuple[int, int, int]] = {}

    def tell(self, grid: tuple[int, int, int]) -> None:
        """Note the grid of a call; where frames lie in the batch, its tokens are those of one frame."""
        t, h, w = grid
        self.by_tokens[h * w] = (1, h, w)
        self.by_tokens[t * h * w] = grid

    def of(self, tokens: int) -> tuple[int, int, int]:
        """Return the grid of so many tokens."""
        if tokens not in self.by_tokens:
            raise UserError(
                f"no grid of {tokens} tokens is known: the model around this attention was not called",
                mend="Call the whole model once at that size",
            )
        return self.by_tokens[tokens]


def call_at(denoiser: Denoiser, grid: tuple[int, int, int]) -> Call:
    """Return a call of the module with so many tokens along each axis; no weights are read."""
    from dit_compress.model.denoiser import hollow
    from dit_compress.structure.record import Call

    t, h, w = (tokens * step for tokens, step in zip(grid, denoiser.patch, strict=True))
    stand_in = hollow(denoiser)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        args, kwargs = stand_in.call(*stand_in.typical(1, (t, h, w), text_length=TEXT_LENGTH))
    return Call(args, kwargs, recorded=True)


def axes_of(denoiser: Denoiser) -> dict[str, list[Any]] | None:
    """Find which arguments of the module grow with T, H and W: ``[name, dim or None, entries per token]`` each.

    T is left out where no argument tells it (frames in the batch). None where nothing tells H and W.
    """
    seen = []
    for grid in SIZES:
        call = call_at(denoiser, grid)
        seen.append(dict(_sizes(bound(denoiser.module, call.args, call.kwargs))))
    found: dict[str, list[Any]] = {}
    for axis, *tokens in zip("THW", *SIZES, strict=True):
        for (name, dim), size in seen[0].items():
            other = seen[1].get((name, dim))
            step = size // tokens[0]
            if step and (size, other) == (step * tokens[0], step * tokens[1]):
                found.setdefault(axis, [name, dim, step])
    return found if {"H", "W"} <= found.keys() else None


def grid_of(axes: Mapping[str, list[Any]], given: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return tokens along T, H, W of a call, from its arguments by name."""
    sizes = dict(_sizes(given))
    found = [sizes[axes[axis][0], axes[axis][1]] // axes[axis][2] if axis in axes else 1 for axis in "THW"]
    return found[0], found[1], found[2]


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by the names that ``forward`` gives them."""
    return dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)


def _sizes(given: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int | None], int]]:
    """Yield the sizes of tensors, dimension by dimension, and whole numbers."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            yield from (((name, dim), size) for dim, size in enumerate(value.shape))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield (name, None), value
