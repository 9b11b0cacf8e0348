"""DiTs as their authors publish them: what ``plain_dits`` and ``other_hands`` lack.

Own ``save_pretrained``, configs that JSON can't hold, unequal blocks, norms of every name, inputs that nothing reads.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from other_hands import DIM, HEAD_DIM, MLP, NHEAD, DualModel, LastDual, Layer, Mlp, SelfAttn, Trunk, Turned
from torch import Tensor, nn

# ------------------------------------------------------------------ how they are kept


class Hub(Trunk, PyTorchModelHubMixin):
    """Its class saves itself, and knows nothing of what was removed."""


class Arguments(Trunk):
    """Its config is what argparse gave."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Namespace(depth=4, fused=True, path=object())


# ------------------------------------------------------------------ blocks of different sizes


class Pyramid(Trunk):
    """Each block has another MLP."""

    def build(self) -> None:
        super().build()
        for place, layer in enumerate(self.layers):
            layer.mlp.fc1, layer.mlp.fc2 = nn.Linear(DIM, MLP * (place + 1)), nn.Linear(MLP * (place + 1), DIM)


class PreOnly(DualModel):
    """The last of its double blocks is another one, and smaller."""

    block = Turned

    def __init__(self) -> None:
        super().__init__()
        self.double_blocks[-1] = LastDual()
        del self.double_blocks[-1].txt_mlp, self.double_blocks[-1].txt_out

    def body(self, img: Tensor, txt: Tensor, emb: Tensor) -> Tensor:
        for block in self.double_blocks:
            img, txt = block(img, txt, emb)
        return img


# ------------------------------------------------------------------ norms of other names


class Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        rrms = torch.rsqrt(torch.mean(x**2, dim=-1, keepdim=True) + 1e-6)
        return x * rrms * self.scale


class Gamma(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma, self.root = nn.Parameter(torch.zeros(dim)), dim**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.root * (self.gamma + 1)


class NormedAttn(SelfAttn):
    """Queries and keys are normed head by head."""

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = Scale(HEAD_DIM), Gamma(HEAD_DIM)

    def forward(self, hidden: Tensor) -> Tensor:
        b, n, _ = hidden.shape
        q, k, v = (z.view(b, n, self.num_heads, -1).transpose(1, 2) for z in self.to_qkv(hidden).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.to_out(mixed.transpose(1, 2).reshape(b, n, -1))


class NormedLayer(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ln_1, self.ln_2 = NormedAttn(), Scale(DIM), Gamma(DIM)


class Normed(Trunk):
    def build(self) -> None:
        self.layers = nn.ModuleList(NormedLayer() for _ in range(3))


# ------------------------------------------------------------------ other ways to attend


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate ``[B,N,S,K]`` as complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class RotatedAttn(SelfAttn):
    """Rotations as complex numbers; grouped keys."""

    def __init__(self) -> None:
        super().__init__()
        del self.to_qkv
        self.n_kv_heads = NHEAD // 2
        self.wq, self.wk, self.wv = (nn.Linear(DIM, DIM // share, bias=False) for share in (1, 2, 2))

    def forward(self, hidden: Tensor) -> Tensor:
        b, n, _ = hidden.shape
        angles = torch.arange(n).to(hidden)[:, None] * torch.tensor([1.0, 0.1]).to(hidden)
        q = turned(self.wq(hidden).view(b, n, self.num_heads, HEAD_DIM).transpose(1, 2), angles)
        k = turned(self.wk(hidden).view(b, n, self.n_kv_heads, HEAD_DIM).transpose(1, 2), angles)
        v = self.wv(hidden).view(b, n, self.n_kv_heads, HEAD_DIM).transpose(1, 2)
        k, v = (z.repeat_interleave(self.num_heads // self.n_kv_heads, 1) for z in (k, v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class Rotated(Trunk):
    def build(self) -> None:
        super().build()
        for layer in self.layers:
            layer.attn = RotatedAttn()


class Parallel(nn.Module):
    """Attention and MLP side by side, one linear in and one out."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.norm = NHEAD, nn.LayerNorm(DIM, elementwise_affine=False)
        self.linear1, self.linear2 = nn.Linear(DIM, 3 * DIM + MLP), nn.Linear(DIM + MLP, DIM)
        self.modulation = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(emb))[:, None].chunk(3, dim=-1)
        qkv, mlp = torch.split(self.linear1((1 + scale) * self.norm(x) + shift), [3 * DIM, MLP], dim=-1)
        b, n, _ = x.shape
        q, k, v = qkv.view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return x + gate * self.linear2(torch.cat((mixed, F.gelu(mlp, approximate="tanh")), 2))


class Single(Trunk):
    def build(self) -> None:
        self.single_blocks = nn.ModuleList(Parallel() for _ in range(4))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        for block in self.single_blocks:
            hidden = block(hidden, emb)
        return hidden


# ------------------------------------------------------------------ other ways through the model


class LongSkips(Trunk):
    """U-ViT: the second half reads what the first half gave."""

    def build(self) -> None:
        self.in_blocks, self.out_blocks = (nn.ModuleList(Layer() for _ in range(2)) for _ in range(2))
        self.joins = nn.ModuleList(nn.Linear(2 * DIM, DIM) for _ in range(2))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        skips = []
        for layer in self.in_blocks:
            hidden = layer(hidden, emb)
            skips.append(hidden)
        for layer, join in zip(self.out_blocks, self.joins, strict=True):
            hidden = layer(join(torch.cat((hidden, skips.pop()), dim=-1)), emb)
        return hidden


class Experts(nn.Module):
    """Every expert, weighted by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(DIM, 3), nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        return sum(shares[..., place, None] * expert(x) for place, expert in enumerate(self.experts))  # type: ignore[return-value]


class Mixture(Trunk):
    def build(self) -> None:
        super().build()
        for layer in self.layers:
            layer.mlp = Experts()


class Unread(Trunk):
    """It takes a guidance that it does not read."""

    def forward(self, sample: Tensor, timestep: Tensor, guidance: Tensor) -> Any:  # type: ignore[override]
        return super().forward(sample, timestep)


class Patched(Trunk):
    """A video ``[B,C,T,H,W]``, cut by a 3D convolution and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(3, DIM, (1, 2, 2), stride=(1, 2, 2))
        self.proj_out = nn.Linear(DIM, 12)
        del self.proj_in

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        x = self.patch_embed(sample)
        b, _, t, h, w = x.shape
        x = self.proj_out(self.body(x.flatten(2).transpose(1, 2), self.temb(timestep.unsqueeze(-1))))
        return x.view(b, t, h, w, 3, 2, 2).permute(0, 4, 1, 2, 5, 3, 6).reshape(b, 3, t, 2 * h, 2 * w)
