"""LCHA: linear attention, in parallel with a depthwise 3D convolution; a gate per head mixes both (S2DiT).

    φ(x) = softplus(W·x + b)
    y_i  = R_i φ(q_i)ᵀ · Σ_j R_j φ(k_j) v_jᵀ / φ(q_i)ᵀ Σ_j φ(k_j)
    out  = g·y + (1 - g)·mix(conv(v)),  g = sigmoid(gate)

Shapes: B batch, S tokens, N heads, K head width, T H W tokens along frames, height, width.
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

TAPS = 3
"""Tokens along each axis that the convolution sees."""
GATE = 4.0
"""At the start the convolution has 2% of the output."""


class PerHead(nn.Module):
    """``x·(1 + w) + b``, apart for each head: at zero it is the identity, and weight decay pulls there."""

    def __init__(self, heads: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, width, width))
        self.bias = nn.Parameter(torch.empty(heads, 1, width)) if bias else None

    def forward(self, x_BNSK: Tensor) -> Tensor:
        """Map the K features of every head."""
        identity = torch.eye(self.weight.shape[-1], dtype=self.weight.dtype, device=self.weight.device)
        y_BNSK = x_BNSK @ (identity + self.weight)
        return y_BNSK if self.bias is None else y_BNSK + self.bias


class LinearConvolution(Mixer):
    """Linear in the number of tokens.

    frames: whether tokens may be of several latent frames. causal: the convolution sees no later one.
    """

    def __init__(self, heads: int, width: int, *, frames: bool = True, causal: bool = False, **places: Any) -> None:
        super().__init__(**places)
        self.back = tuple(TAPS - 1 - tap if causal else TAPS // 2 - tap for tap in range(TAPS)) if frames else (0,)
        self.query, self.key = (PerHead(heads, width, bias=True) for _ in range(2))
        inner = heads * width
        self.taps = nn.ModuleList(
            nn.Conv2d(inner, inner, TAPS, padding=TAPS // 2, groups=inner, bias=False) for _ in self.back
        )
        self.mix = PerHead(heads, width, bias=False)
        self.gate = nn.Parameter(torch.empty(heads, 1, 1))

    @torch.no_grad()
    def start(self) -> None:
        """Begin with features of the queries themselves, and a convolution that gives each token its own value."""
        for part in (self.query, self.key, self.mix):
            for parameter in part.parameters():
                nn.init.zeros_(parameter)
        for conv in self.taps.parameters():
            nn.init.zeros_(conv)
        own: Any = self.taps[self.back.index(0)]
        own.weight[:, :, TAPS // 2, TAPS // 2] = 1
        self.gate.fill_(GATE)

    def feature(self, side: str, x_BNSK: Tensor) -> Tensor:
        """Return φ, which is positive."""
        return F.softplus((self.query if side == "query" else self.key)(x_BNSK))

    def forward(self, q_BNSK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, seen: Seen) -> Tensor:
        """Mix both branches. Queries and keys are rotated features; the denominator has them unrotated."""
        y_BNSK = linear_attention(q_BNSK, k_BNSK, v_BNSK, seen.features["query"], seen.features["key"])
        gate = self.gate.sigmoid()
        return gate * y_BNSK + (1 - gate) * self.mix(self.convolution(v_BNSK, seen.grid))

    def convolution(self, v_BNSK: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Convolve each channel over T, H, W: one 2D convolution per tap in time, shifted and added."""
        frames = to_frames(v_BNSK, grid)
        made = [
            shifted(conv(frames), back, grid[0])
            for back, conv in zip(self.back, self.taps, strict=True)
            if abs(back) < grid[0]
        ]
        return to_heads(sum(made[1:], made[0]), grid, v_BNSK.shape[-1])


def shifted(frames: Tensor, back: int, t: int) -> Tensor:
    """Move ``[B·T,…]`` by some frames, zeros where none was; each frame gets what was ``back`` before it."""
    if not back:
        return frames
    made = frames.unflatten(0, (-1, t))
    empty = torch.zeros_like(made[:, : abs(back)])
    parts = [empty, made[:, : t - back]] if back > 0 else [made[:, -back:], empty]
    return torch.cat(parts, 1).flatten(0, 1)


def linear_attention(q_BNSK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, plain_q: Tensor, plain_k: Tensor) -> Tensor:
    """Return ``q·(Σ k vᵀ) / plain_q·Σ plain_k``; sums are means, so that half precision holds them."""
    tokens = k_BNSK.shape[-2]
    state_BNKK = (k_BNSK.transpose(-1, -2) / tokens) @ v_BNSK
    total_BNK1 = plain_k.mean(-2)[..., None]
    return (q_BNSK @ state_BNKK) / (plain_q @ total_BNK1)
