"""Common parts of discriminators: a frozen trunk, its feature as a grid, and heads of comparable size.

Shapes: B batch, S tokens, D width, T H W the grid of tokens.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.model.cut import truncated

if TYPE_CHECKING:
    from collections.abc import Callable

    from dit_compress.model.denoiser import Cond, Denoiser

REFERENCE_BLOCKS, REFERENCE_SHARE = 2, 4
"""The paper's head: two blocks of the generator, and an MLP of a quarter of the stream."""


def frozen_depth(generator: Denoiser, asked: int | None, learnable: int) -> int:
    """Return K, half of the generator's depth if not asked for; raise a UserError where the blocks don't suffice."""
    depth = generator.structure().main.length
    frozen = asked or max(1, depth // 2)
    if frozen + learnable > depth:
        parts = f"{frozen} frozen and {learnable} learnable blocks" if learnable else f"{frozen} frozen blocks"
        raise UserError(
            f"{parts} are more than the generator's {depth}",
            mend="Lower 'frozen_blocks'" + (" or 'learnable_blocks'" if learnable else ""),
        )
    return frozen


class GridDiscriminator(nn.Module):
    """``(latent_BCTHW, sigma_B, cond) → logits [B,S]``: a head on the feature after K frozen blocks.

    head: ``[B,D,T,H,W] → [B,1,T,H,W]``; it runs in float32, whatever the rest runs in: convolutions in
    bfloat16 give wrong gradients on some CPUs.
    """

    def __init__(self, generator: Denoiser, frozen: int, head: nn.Module) -> None:
        super().__init__()
        self.trunk = truncated(generator, frozen).requires_grad_(requires_grad=False)
        self.frozen_blocks = frozen
        self.head = head

    def forward(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        """Return one logit per token."""
        last = self.frozen_blocks - 1
        _, taken = self.trunk.features(latent_BCTHW, sigma_B, cond, at=[last])
        grid = [cells // patch for cells, patch in zip(latent_BCTHW.shape[2:], self.trunk.patch, strict=True)]
        feature_BDTHW = taken[last].transpose(1, 2).unflatten(2, grid)
        device = latent_BCTHW.device.type
        with torch.autocast(device, enabled=False) if device != "meta" else nullcontext():
            return self.head(feature_BDTHW.float()).flatten(1)


def grid_discriminator(
    generator: Denoiser, frozen_blocks: int | None, width: int | None, head: Callable[[int, int], nn.Module]
) -> GridDiscriminator:
    """Make a discriminator from a frozen copy of the generator as it is now.

    head: made of the stream's width and its own; as many parameters as the paper's where ``width`` is None.
    """
    frozen = frozen_depth(generator, frozen_blocks, 0)
    stream = generator.stream_width()
    width = width or matched_width(lambda width: head(stream, width), reference_parameters(generator, frozen))
    return GridDiscriminator(generator, frozen, head(stream, width))


def matched_width(make: Callable[[int], nn.Module], target: int, *, multiple_of: int = 8) -> int:
    """Find the width whose head comes closest to ``target`` parameters; heads are made without weights."""

    def size(width: int) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in make(width).parameters())

    low, high = 1, 2
    while size(high * multiple_of) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle * multiple_of) < target else (low, middle)
    return min((low, high), key=lambda count: abs(size(count * multiple_of) - target)) * multiple_of


def reference_parameters(generator: Denoiser, frozen: int) -> int:
    """Count the trainable parameters of the paper's head on this generator: two of its blocks and the MLP."""
    stack = generator.structure().main
    block = generator.module.get_submodule(stack.block(min(frozen, stack.length - 1)))
    width = generator.stream_width()
    hidden = max(8, width // REFERENCE_SHARE)
    mlp = 2 * width + (width + 1) * hidden + hidden + 1
    return REFERENCE_BLOCKS * sum(parameter.numel() for parameter in block.parameters()) + mlp


def groups_of(width: int, most: int = 32) -> int:
    """Return how many groups a GroupNorm of this width gets: the most, up to 32, that divide it."""
    return next(groups for groups in range(min(most, width), 0, -1) if width % groups == 0)
