"""ASSA: a global branch with coarse keys, a local one of neighbouring blocks, mixed per head and token (SnapGen++).

    global = softmax(q·conv(k)ᵀ)·conv(v),  conv: 2x2, stride 2, in each frame
    local  = block b of the tokens attends to blocks b-r … b+r
    out    = g·local + (1 - g)·global,  g = sigmoid(gate(x)), one number per head and token

Shapes: B batch, S tokens, N heads, K head width, D width, T H W tokens along frames, height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_compress_plugins.transform_attention.layout import to_frames, to_heads
from dit_compress_plugins.transform_attention.swap import Mixer

if TYPE_CHECKING:
    from dit_compress_plugins.transform_attention.swap import Seen

COARSE = 2
"""Tokens along H and W that one global key stands for."""


class GlobalLocal(Mixer):
    """blocks: into which the tokens are cut; radius: blocks to either side that a block sees."""

    def __init__(
        self, heads: int, width: int, tokens: int, *, blocks: int = 16, radius: int = 1, **places: Any
    ) -> None:
        super().__init__(**places)
        self.blocks, self.radius = blocks, radius
        inner = heads * width
        self.key, self.value = (
            nn.Conv2d(inner, inner, COARSE, stride=COARSE, groups=inner, bias=False) for _ in range(2)
        )
        self.gate = nn.Linear(tokens, heads)

    @torch.no_grad()
    def start(self) -> None:
        """Begin with means of keys and values, and half of either branch."""
        for conv in (self.key, self.value):
            nn.init.constant_(conv.weight, COARSE**-2)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, q_BNSK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, seen: Seen) -> Tensor:
        """Mix both branches."""
        assert seen.tokens is not None
        far = F.scaled_dot_product_attention(
            q_BNSK, coarse(k_BNSK, seen.grid, self.key), coarse(v_BNSK, seen.grid, self.value), scale=seen.scale
        )
        near = local_attention(q_BNSK, k_BNSK, v_BNSK, self.blocks, self.radius, seen.scale)
        gate = self.gate(seen.tokens).sigmoid().transpose(1, 2)[..., None]
        return gate * near + (1 - gate) * far


def coarse(x_BNSK: Tensor, grid: tuple[int, int, int], conv: nn.Module) -> Tensor:
    """Convolve keys or values in each frame; an odd edge is repeated once."""
    t, h, w = grid
    frames = to_frames(x_BNSK, grid)
    if h % COARSE:
        frames = torch.cat([frames, frames[:, :, -1:]], 2)
    if w % COARSE:
        frames = torch.cat([frames, frames[..., -1:]], 3)
    return to_heads(conv(frames), (t, -1, -1), x_BNSK.shape[-1])


def local_attention(
    q_BNSK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, blocks: int, radius: int, scale: float | None = None
) -> Tensor:
    """Let each of so many blocks of tokens attend to its neighbours; sizes of blocks differ by one at most."""
    tokens = q_BNSK.shape[2]
    count = min(blocks, tokens)
    edges = [tokens * place // count for place in range(count + 1)]
    parts = []
    for place in range(count):
        own = slice(edges[place], edges[place + 1])
        near = slice(edges[max(0, place - radius)], edges[min(count, place + radius + 1)])
        parts.append(
            F.scaled_dot_product_attention(q_BNSK[:, :, own], k_BNSK[:, :, near], v_BNSK[:, :, near], scale=scale)
        )
    return torch.cat(parts, 2)
