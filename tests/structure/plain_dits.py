"""DiTs in plain torch, in styles that no library shares: what discovery must find without knowing any of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, HEAD_WIDTH, CHANNELS, TOKENS, TEXT = 24, 3, 8, 20, 6, 5


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``[B,N,S,K]`` each."""
    return F.scaled_dot_product_attention(q, k, v)


class Model(nn.Module):
    """Latent tokens ``[B,S,4]`` and a clock ``[B]`` → ``[B,S,4]``, through a list of blocks."""

    def __init__(self, block: type[nn.Module], depth: int = 3) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.clock = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, t = self.enter(x), self.clock(t[:, None])
        for block in self.blocks:
            x = block(x, t)
        return self.leave(x)


class Fused(nn.Module):
    """One linear for query, key and value, reshaped; AdaLN; a plain MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.n = HEADS
        self.modulate = nn.Linear(WIDTH, 2 * WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, CHANNELS), nn.GELU(), nn.Linear(CHANNELS, WIDTH))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = self.modulate(t)[:, None].chunk(2, -1)
        y = F.layer_norm(x, (WIDTH,)) * (1 + scale) + shift
        b, s, _ = y.shape
        q, k, v = self.qkv(y).reshape(b, s, 3, self.n, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(attend(q, k, v).transpose(1, 2).reshape(b, s, -1))
        return x + self.mlp(F.layer_norm(x, (WIDTH,)))


class Einsum(nn.Module):
    """Bare parameters and einsum; the head is a dimension of its own; SwiGLU from one stacked parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(HEADS, WIDTH, HEAD_WIDTH) / 5) for _ in range(3))
        self.o = nn.Parameter(torch.randn(HEADS, HEAD_WIDTH, WIDTH) / 5)
        self.up = nn.Parameter(torch.randn(2, WIDTH, CHANNELS) / 5)
        self.down = nn.Parameter(torch.randn(CHANNELS, WIDTH) / 5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = F.layer_norm(x + t[:, None], (WIDTH,))
        q, k, v = (torch.einsum("bsd,ndk->bnsk", y, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bnsk,bnlk->bnsl", q, k).mul(HEAD_WIDTH**-0.5).softmax(-1)
        x = x + torch.einsum("bnsk,nkd->bsd", torch.einsum("bnsl,bnlk->bnsk", weights, v), self.o)
        y = F.layer_norm(x, (WIDTH,))
        return x + (F.silu(y @ self.up[0]) * (y @ self.up[1])) @ self.down


class Torch(nn.Module):
    """``nn.MultiheadAttention``, to itself and to the clock; a post-norm feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.other = nn.MultiheadAttention(WIDTH, HEADS)
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, CHANNELS), nn.Linear(CHANNELS, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.own(y, y, y, need_weights=False)[0]
        clock = torch.stack([t, t.sin(), t.cos()])
        x = x + self.other(x.transpose(0, 1), clock, clock)[0].transpose(0, 1)
        return self.last(x + self.down(F.relu(self.up(x)).square()))


class Table(nn.Module):
    """A bias table and a temperature per head; grouped keys; RMSNorm across all query heads; gates per head."""

    def __init__(self) -> None:
        super().__init__()
        self.n_query, self.n_key = 2 * HEADS, HEADS
        inner = 2 * HEADS * 4
        self.q, self.out = nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, HEADS * 4, bias=False), nn.Linear(WIDTH, HEADS * 4, bias=False)
        self.gate = nn.Linear(WIDTH, 2 * HEADS)
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.bias = nn.Parameter(torch.randn(2 * HEADS, TOKENS, TOKENS))
        self.heat = nn.Parameter(torch.rand(2 * HEADS, 1, 1) + 1)
        self.pair = nn.Conv1d(WIDTH, 2 * CHANNELS, 1)
        self.depth = nn.Conv1d(2 * CHANNELS, 2 * CHANNELS, 3, padding=1, groups=2 * CHANNELS)
        self.point = nn.Conv1d(CHANNELS, WIDTH, 1, bias=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = F.rms_norm(x, (WIDTH,)) + t[:, None]
        q = self.norm(self.q(y)).unflatten(-1, (self.n_query, -1)).transpose(1, 2)
        k, v = (f(y).unflatten(-1, (self.n_key, -1)).transpose(1, 2) for f in (self.k, self.v))
        k, v = (x.repeat_interleave(self.n_query // self.n_key, 1) for x in (k, v))
        weights = (q @ k.transpose(-1, -2) * self.heat + self.bias).softmax(-1)
        mixed = weights @ v * self.gate(y).sigmoid().transpose(1, 2)[..., None]
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        value, gate = self.depth(self.pair(F.rms_norm(x, (WIDTH,)).transpose(1, 2))).chunk(2, 1)
        return x + self.point(value * F.silu(gate)).transpose(1, 2)


class Joint(nn.Module):
    """Two streams that attend together, interleaved gates; the block gives both streams back."""

    def __init__(self) -> None:
        super().__init__()
        self.width = HEAD_WIDTH
        self.image, self.text = (nn.Linear(WIDTH, 3 * HEADS * HEAD_WIDTH) for _ in range(2))
        self.image_out, self.text_out = (nn.Linear(HEADS * HEAD_WIDTH, WIDTH) for _ in range(2))
        self.up, self.down = nn.Linear(WIDTH, 2 * CHANNELS), nn.Linear(CHANNELS, WIDTH)

    def forward(self, text: Tensor, image: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        length = text.shape[1]
        both = [F.layer_norm(item + t[:, None], (WIDTH,)) for item in (text, image)]
        joined = torch.cat([self.text(both[0]), self.image(both[1])], 1)
        q, k, v = joined.unflatten(-1, (-1, 3, self.width)).permute(3, 0, 2, 1, 4)
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)
        text, image = text + self.text_out(mixed[:, :length]), image + self.image_out(mixed[:, length:])
        pairs = self.up(F.layer_norm(image, (WIDTH,))).unflatten(-1, (-1, 2))
        return text, image + self.down(pairs[..., 0] * pairs[..., 1].sigmoid())


class JointModel(nn.Module):
    """Image tokens ``[B,S,4]``, text ``[B,L,4]``, a clock; every block has a scale of its own, by its index."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.read, self.clock = nn.Linear(4, WIDTH), nn.Linear(1, WIDTH)
        self.scales = nn.Parameter(torch.rand(depth))
        self.blocks = nn.ModuleList(Joint() for _ in range(depth))

    def forward(self, image: Tensor, text: Tensor, t: Tensor) -> Tensor:
        image, text, t = self.enter(image), self.read(text), self.clock(t[:, None])
        for index, block in enumerate(self.blocks):
            text, image = block(text, image, t * self.scales[index])
        return self.leave(image)


class Across(nn.Module):
    """LayerNorm across heads: its mean changes with the heads, so that none can be removed exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, CHANNELS), nn.Linear(CHANNELS, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = F.layer_norm(x + t[:, None], (WIDTH,))
        q, k, v = self.norm(self.q(y)), self.k(y), self.v(y)
        q, k, v = (item.unflatten(-1, (self.heads, -1)).transpose(1, 2) for item in (q, k, v))
        x = x + self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, (WIDTH,)))))
