"""Layers of the reference DiT: norm, RoPE, attention, block, patches.

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens, D width, N heads, K head
width, F FFN width, L text length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

MASKED = -4e4
"""Added to the scores of padding. Not -inf: half precision and Core ML keep it finite."""


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps)`` over the last axis, times a weight; half precision is computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-6, *, affine: bool = True) -> None:
        super().__init__()
        self.dim, self.eps = (dim,), eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., D]``; shape and dtype stay."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide if self.weight is None else wide * self.weight).to(x.dtype)


def rope(size_THW: tuple[int, int, int], head_width: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines ``[S, K/2]`` of the token positions; K/2 is split over T, H and W (T takes the rest).

    Rates fall from 1 to about 1/theta radians per token.
    """
    share = head_width // 6
    pairs = (head_width // 2 - 2 * share, share, share)
    angles = []
    for axis, (size, count) in enumerate(zip(size_THW, pairs, strict=True)):
        rate = theta ** (torch.arange(count, device=like.device, dtype=torch.float32) / -max(count, 1))
        angle = torch.arange(size, device=like.device, dtype=torch.float32)[:, None] * rate
        shape = [1, 1, 1, count]
        shape[axis] = size
        angles.append(angle.reshape(shape).expand(*size_THW, count))
    angle = torch.cat(angles, -1).reshape(-1, head_width // 2)
    wide = torch.promote_types(like.dtype, torch.float32)
    return angle.cos().to(wide), angle.sin().to(wide)


def rotate(x_BNSK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (k, k + K/2) of every head by the position's angle, in the precision of the tables."""
    cos, sin = rope
    first, second = x_BNSK.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_BNSK.dtype)


class Attention(nn.Module):
    """Multi-head attention with RMSNorm of queries and keys per head. The number of heads is free of the width."""

    def __init__(self, hidden: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        inner = heads * head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(hidden, inner) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(head_width), RMSNorm(head_width)
        self.to_out = nn.ModuleList([nn.Linear(inner, hidden)])

    def forward(
        self,
        x_BSD: Tensor,
        context_BLD: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        bias_B11L: Tensor | None = None,
    ) -> Tensor:
        """Attend from tokens to tokens ``[B,S,D]``: to the context where there is one, else to themselves."""
        source = x_BSD if context_BLD is None else context_BLD
        q, k, v = self._split(self.to_q(x_BSD)), self._split(self.to_k(source)), self._split(self.to_v(source))
        q, k = self.norm_q(q), self.norm_k(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        mixed_BNSK = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_B11L)
        return self.to_out[0](mixed_BNSK.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """Split ``[B,S,N·K]`` into ``[B,N,S,K]``."""
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)


class Block(nn.Module):
    """Self-attention, cross-attention to text, FFN. The first and the last are modulated by AdaLN-single."""

    def __init__(self, hidden: int, heads: int, cross_heads: int, head_width: int, ffn: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(hidden, affine=False)
        self.attn1 = Attention(hidden, heads, head_width)
        self.norm2 = RMSNorm(hidden)
        self.attn2 = Attention(hidden, cross_heads, head_width)
        self.norm3 = RMSNorm(hidden, affine=False)
        self.ff = FeedForward(hidden, inner_dim=ffn, activation_fn="gelu-approximate")
        self.scale_shift_table = nn.Parameter(torch.zeros(6, hidden))

    def forward(
        self,
        x_BSD: Tensor,
        text_BLD: Tensor,
        table_B6D: Tensor,
        rope: tuple[Tensor, Tensor],
        bias_B11L: Tensor,
    ) -> Tensor:
        """Run the block on the stream ``[B,S,D]``."""
        shift1, scale1, gate1, shift3, scale3, gate3 = (self.scale_shift_table + table_B6D).chunk(6, dim=1)
        x_BSD = x_BSD + gate1 * self.attn1(self.norm1(x_BSD) * (1 + scale1) + shift1, rope=rope)
        x_BSD = x_BSD + self.attn2(self.norm2(x_BSD), text_BLD, bias_B11L=bias_B11L)
        return x_BSD + gate3 * self.ff(self.norm3(x_BSD) * (1 + scale3) + shift3)


def patchify(latent_BCTHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Cut into tokens ``[B,S,C·patch]``; fold one axis at a time so that no tensor exceeds rank 5."""
    x = latent_BCTHW
    for axis, step in zip((2, 3, 4), patch, strict=True):
        if step > 1:
            before, after = x.shape[1:axis].numel(), x.shape[axis + 1 :].numel()
            shape = [*x.shape[2:axis], x.shape[axis] // step, *x.shape[axis + 1 :]]
            x = x.reshape(x.shape[0], before, x.shape[axis] // step, step, after).permute(0, 3, 1, 2, 4)
            x = x.reshape(x.shape[0], -1, *shape)
    return x.flatten(2).transpose(1, 2)


def unpatchify(tokens_BSP: Tensor, size_THW: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """Undo :func:`patchify`: latent ``[B,C,T,H,W]``; ``size_THW`` counts tokens."""
    x = tokens_BSP.transpose(1, 2).unflatten(2, size_THW)
    for axis, step in reversed(list(zip((2, 3, 4), patch, strict=True))):
        if step > 1:
            channels, size = x.shape[1] // step, list(x.shape[2:])
            before, after = x.shape[2:axis].numel(), x.shape[axis + 1 :].numel()
            size[axis - 2] *= step
            x = x.reshape(x.shape[0], step, channels * before, x.shape[axis], after).permute(0, 2, 3, 1, 4)
            x = x.reshape(x.shape[0], channels, *size)
    return x
