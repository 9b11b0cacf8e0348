"""SSA: attention among every so many tokens, whose result stands for their neighbours, too (S2DiT).

Shapes: B batch, S tokens, N heads, K head width, T H W tokens along frames, height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_compress_plugins.transform_attention.swap import Mixer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress_plugins.transform_attention.swap import Seen


class Strided(Mixer):
    """Queries, keys and values are strided alike; nothing is learned. stride: along T, H, W."""

    def __init__(self, stride: Sequence[int], **places: Any) -> None:
        super().__init__(**places)
        self.stride = tuple(stride)

    def start(self) -> None:
        """Begin with nothing: there are no parameters."""

    def forward(self, q_BNSK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, seen: Seen) -> Tensor:
        """Attend among the tokens that stay."""
        kept, back = places(seen.grid, self.stride, q_BNSK.device)
        q, k, v = (x.index_select(2, kept) for x in (q_BNSK, k_BNSK, v_BNSK))
        return F.scaled_dot_product_attention(q, k, v, scale=seen.scale).index_select(2, back)


def places(grid: tuple[int, int, int], stride: Sequence[int], device: Any) -> tuple[Tensor, Tensor]:
    """Return the tokens that stay, and for each token the place of its own among them."""
    index = torch.arange(grid[0] * grid[1] * grid[2], device=device).reshape(grid)
    kept = index[:: stride[0], :: stride[1], :: stride[2]]
    own = torch.arange(kept.numel(), device=device).reshape(kept.shape)
    for axis, step in enumerate(stride):
        own = own.repeat_interleave(step, axis).narrow(axis, 0, grid[axis])
    return kept.flatten(), own.flatten()
