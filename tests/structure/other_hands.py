"""DiTs as other hands write them: streams in structures, lists of lists, named blocks, empty places, checks on dtype."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from dataclasses import replace as but
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DIM, NHEAD, HEAD_DIM, MLP = 16, 4, 4, 12


class SelfAttn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = NHEAD
        self.to_qkv = nn.Linear(DIM, DIM * 3, bias=False)
        self.to_out = nn.Linear(DIM, DIM)

    def forward(self, hidden: Tensor) -> Tensor:
        b, n, _ = hidden.shape
        q, k, v = (z.view(b, n, self.num_heads, -1).transpose(1, 2) for z in self.to_qkv(hidden).chunk(3, dim=-1))
        weights = (q @ k.mT / HEAD_DIM**0.5).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).reshape(b, n, -1))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(DIM, MLP), nn.Linear(MLP, DIM)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(torch.nn.functional.silu(self.fc1(hidden)))


class Layer(nn.Module):
    """Pre-norm, the usual way."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn, self.mlp = SelfAttn(), Mlp()

    def forward(self, hidden: Tensor, emb: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden) + emb.unsqueeze(1))
        return hidden + self.mlp(self.ln_2(hidden))


class PostNorm(Layer):
    """What it gives back is no residual."""

    def forward(self, hidden: Tensor, emb: Tensor) -> Tensor:
        return self.ln_2(super().forward(hidden, emb))


class Trunk(nn.Module):
    """``[B,N,3]`` and ``[B]`` → ``[B,N,3]``."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_in, self.proj_out, self.temb = nn.Linear(3, DIM), nn.Linear(DIM, 3), nn.Linear(1, DIM)
        self.build()

    def build(self) -> None:
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, emb)
        return hidden

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        return self.proj_out(self.body(self.proj_in(sample), self.temb(timestep.unsqueeze(-1))))


class Counted(Trunk):
    """Each layer at its own strength, by its place: none can be left out of the list."""

    kind: type[nn.Module] = Layer

    def build(self) -> None:
        self.layers = nn.ModuleList(self.kind() for _ in range(4))
        self.strength = nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            hidden = layer(hidden, emb * self.strength[place])
        return hidden


class CountedPost(Counted):
    kind = PostNorm


class Refined(Counted):
    """A shorter stack behind the long one."""

    def build(self) -> None:
        super().build()
        self.refiner = nn.ModuleList(Layer() for _ in range(2))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        hidden = super().body(hidden, emb)
        for layer in self.refiner:
            hidden = layer(hidden, emb)
        return hidden


# ------------------------------------------------------------------ lists of other kinds


class Named(Trunk):
    """A ModuleDict, in the order of its keys."""

    def build(self) -> None:
        self.layers = nn.ModuleDict({name: Layer() for name in ("low", "mid", "high")})

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        for layer in self.layers.values():
            hidden = layer(hidden, emb)
        return hidden


class Holes(Trunk):
    """Places that a config left empty."""

    def build(self) -> None:
        self.layers = nn.ModuleList([Layer(), None, Layer(), None, Layer()])  # type: ignore[list-item]

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = hidden if layer is None else layer(hidden, emb)
        return hidden


class Pairs(Trunk):
    """A list of ``[attention, mlp]``; the model adds what they give."""

    def build(self) -> None:
        self.layers = nn.ModuleList(nn.ModuleList([SelfAttn(), Mlp()]) for _ in range(3))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        for attn, mlp in self.layers:  # type: ignore[misc]
            hidden = attn(nn.functional.layer_norm(hidden + emb[:, None], (DIM,))) + hidden
            hidden = mlp(nn.functional.layer_norm(hidden, (DIM,))) + hidden
        return hidden


class Resampled(Counted):
    """Whole blocks behind a longer list of pairs."""

    def build(self) -> None:
        super().build()
        self.resampler = nn.ModuleList(nn.ModuleList([SelfAttn(), Mlp()]) for _ in range(6))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        for attn, mlp in self.resampler:  # type: ignore[misc]
            hidden = attn(hidden) + hidden
            hidden = mlp(hidden) + hidden
        return super().body(hidden, emb)


class Stages(Trunk):
    """A list of lists of whole blocks that hand the stream on and are no residuals."""

    def build(self) -> None:
        self.layers = nn.ModuleList(nn.ModuleList([PostNorm()]) for _ in range(3))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        for stage in self.layers:
            for layer in stage:  # type: ignore[attr-defined]
                hidden = layer(hidden, emb)
        return hidden


class Hourglass(Trunk):
    """Blocks in, one in the middle, blocks out."""

    def build(self) -> None:
        self.in_blocks = nn.ModuleList(Layer() for _ in range(2))
        self.mid_block = Layer()
        self.out_blocks = nn.ModuleList(Layer() for _ in range(2))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        skips = []
        for layer in self.in_blocks:
            hidden = layer(hidden, emb)
            skips.append(hidden)
        hidden = self.mid_block(hidden, emb)
        for layer in self.out_blocks:
            hidden = layer(hidden + skips.pop(), emb)
        return hidden


class Video(Trunk):
    """Spatial and temporal blocks in turn, rearranged between them."""

    def build(self) -> None:
        self.blocks = nn.ModuleList(Layer() for _ in range(3))
        self.temporal_blocks = nn.ModuleList(Layer() for _ in range(3))

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        b, n, d = hidden.shape
        for space, time in zip(self.blocks, self.temporal_blocks, strict=True):
            hidden = space(hidden, emb)
            turned = hidden.view(b, 2, n // 2, d).transpose(1, 2).reshape(b * n // 2, 2, d)
            turned = time(turned, emb.repeat_interleave(n // 2, 0))
            hidden = turned.view(b, n // 2, 2, d).transpose(1, 2).reshape(b, n, d)
        return hidden


class CallsItself(Layer):
    """Its class brings a ``__call__`` of its own."""

    def __call__(self, hidden: Tensor, emb: Tensor) -> Tensor:
        return self.forward(hidden, emb)


class Overridden(Trunk):
    def build(self) -> None:
        self.layers = nn.ModuleList(CallsItself() for _ in range(3))


# ------------------------------------------------------------------ streams in structures


@dataclass
class State:
    img: Tensor
    txt: Tensor
    emb: Tensor


class Both(NamedTuple):
    img: Tensor
    txt: Tensor


class Output(OrderedDict[str, Any]):
    """As transformers writes it: items and attributes are one."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Bag:
    """Whatever somebody puts on it."""


class Dual(nn.Module):
    """Image and text tokens that attend together."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = NHEAD
        self.img_qkv, self.txt_qkv = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, 3 * DIM)
        self.img_out, self.txt_out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.img_mlp, self.txt_mlp = Mlp(), Mlp()

    def mix(self, img: Tensor, txt: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        length = txt.size(1)
        joined = torch.cat([self.txt_qkv(txt + emb[:, None]), self.img_qkv(img + emb[:, None])], dim=1)
        b, n, _ = joined.shape
        q, k, v = joined.view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        txt, img = txt + self.txt_out(mixed[:, :length]), img + self.img_out(mixed[:, length:])
        return img + self.img_mlp(img), txt + self.txt_mlp(txt)


class DualModel(nn.Module):
    """Image tokens ``[B,N,3]``, text ``[B,L,5]`` and ``[B]`` → ``[B,N,3]``."""

    block: type[nn.Module] = Dual

    def __init__(self) -> None:
        super().__init__()
        self.proj_in, self.proj_out, self.temb = nn.Linear(3, DIM), nn.Linear(DIM, 3), nn.Linear(1, DIM)
        self.context = nn.Linear(5, DIM)
        self.double_blocks = nn.ModuleList(self.block() for _ in range(3))

    def forward(self, sample: Tensor, prompt: Tensor, timestep: Tensor) -> Tensor:
        img, txt = self.proj_in(sample), self.context(prompt)
        return self.proj_out(self.body(img, txt, self.temb(timestep[:, None])))

    def body(self, img: Tensor, txt: Tensor, emb: Tensor) -> Tensor:
        raise NotImplementedError


class OnState(Dual):
    def forward(self, state: State) -> State:
        img, txt = self.mix(state.img, state.txt, state.emb)
        return but(state, img=img, txt=txt)


class StateModel(DualModel):
    """A dataclass in, a new one out."""

    block = OnState

    def body(self, img: Tensor, txt: Tensor, emb: Tensor) -> Tensor:
        state = State(img, txt, emb)
        for block in self.double_blocks:
            state = block(state)
        return state.img


@dataclass(frozen=True)
class Batch:
    sample: Tensor
    timestep: Tensor


class Wrapped(Trunk):
    """One frozen dataclass in, a structure out."""

    def forward(self, batch: Batch) -> Any:  # type: ignore[override]
        return Output(velocity=super().forward(batch.sample, batch.timestep))


class OnBoth(Dual):
    def forward(self, both: Both, emb: Tensor) -> Both:
        return Both(*self.mix(both.img, both.txt, emb))


class TupleModel(DualModel):
    """A NamedTuple in, a NamedTuple out."""

    block = OnBoth

    def body(self, img: Tensor, txt: Tensor, emb: Tensor) -> Tensor:
        both = Both(img, txt)
        for block in self.double_blocks:
            both = block(both, emb=emb)
        return both.img


class GivesOutput(Dual):
    def forward(self, img: Tensor, txt: Tensor, emb: Tensor) -> Output:
        img, txt = self.mix(img, txt, emb)
        return Output(sample=img, context=txt)


class OutputModel(DualModel):
    """Tensors in, a structure of outputs out."""

    block = GivesOutput

    def body(self, img: Tensor, txt: Tensor, emb: Tensor) -> Tensor:
        for block in self.double_blocks:
            out = block(img, txt, emb)
            img, txt = out.sample, out["context"]
        return img


class OnBag(Dual):
    def forward(self, bag: Any) -> Any:
        bag.img, bag.txt = self.mix(bag.img, bag.txt, bag.emb)
        return bag


class BagModel(DualModel):
    """One object whose attributes every block writes."""

    block = OnBag

    def body(self, img: Tensor, txt: Tensor, emb: Tensor) -> Tensor:
        bag: Any = Bag()
        bag.img, bag.txt, bag.emb = img, txt, emb
        for block in self.double_blocks:
            bag = block(bag)
        return bag.img


class Silent(OnBag):
    def forward(self, bag: Any) -> None:
        super().forward(bag)


class SilentModel(BagModel):
    """The same, and the blocks give nothing back."""

    block = Silent

    def body(self, img: Tensor, txt: Tensor, emb: Tensor) -> Tensor:
        bag: Any = Bag()
        bag.img, bag.txt, bag.emb = img, txt, emb
        for block in self.double_blocks:
            block(bag)
        return bag.img


class Turned(Dual):
    def forward(self, img: Tensor, txt: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(img, txt, emb)


class TurnedModel(DualModel):
    """The latent is a transposed view, and stays one through the residuals."""

    block = Turned

    def body(self, img: Tensor, txt: Tensor, emb: Tensor) -> Tensor:
        img = img.transpose(0, 1).contiguous().transpose(0, 1)
        for block in self.double_blocks:
            img, txt = block(img, txt, emb)
        return img


# ------------------------------------------------------------------ checks on dtype


class Strict(Layer):
    """As the originals check it: the clock in single precision, the stream in its own."""

    def forward(self, hidden: Tensor, emb: Tensor) -> Tensor:
        assert emb.dtype == torch.float32
        assert hidden.dtype == self.mlp.fc1.weight.dtype, "mixed precision"
        return super().forward(hidden, emb)


class StrictModel(Trunk):
    def build(self) -> None:
        self.layers = nn.ModuleList(Strict() for _ in range(3))


class HalfModel(Trunk):
    """A check that float32 does not pass."""

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        assert hidden.dtype is torch.bfloat16
        return super().body(hidden, emb)


class Both16And32(HalfModel):
    """Two checks that no one dtype passes."""

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        assert self.temb(emb[:, :1]).float().dtype == torch.float32
        return super().body(hidden, emb)


class Grumpy(Trunk):
    """A block that does not run twice alike: nothing to do with dtypes."""

    def body(self, hidden: Tensor, emb: Tensor) -> Tensor:
        if hidden.dtype == torch.float64 or hidden.abs().max() > 0:
            raise ValueError("I do not like these numbers")
        return hidden


# ------------------------------------------------------------------ heads that the code counts otherwise


class TimmAttn(nn.Module):
    """``C // num_heads`` from the stream, twice; a helper does the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = NHEAD
        self.qkv, self.proj = nn.Linear(DIM, DIM * 3), nn.Linear(DIM, DIM)
        self.scale = HEAD_DIM**-0.5

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape  # noqa: N806
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


class ScaledAttn(TimmAttn):
    """The same, and the scale is made of it too: no reshape alone mends it."""

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape  # noqa: N806
        width = C // self.num_heads
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, width).permute(2, 0, 3, 1, 4)
        attn = (q @ k.transpose(-2, -1) * width**-0.5).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class TimmModel(Trunk):
    attention: type[nn.Module] = TimmAttn

    def build(self) -> None:
        super().build()
        for layer in self.layers:
            layer.attn = self.attention()


class ScaledModel(TimmModel):
    attention = ScaledAttn


class LastDual(Dual):
    """Its text goes no further: of ``txt_qkv``, a third is read by nothing."""

    def forward(self, img: Tensor, txt: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        length = txt.size(1)
        joined = torch.cat([self.txt_qkv(txt + emb[:, None]), self.img_qkv(img + emb[:, None])], dim=1)
        b, n, _ = joined.shape
        q, k, v = joined.view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q[:, :, length:], k, v)
        img = img + self.img_out(mixed.transpose(1, 2).reshape(b, n - length, -1))
        return img + self.img_mlp(img), txt


class LastByHeads(LastDual):
    """The same with query, key and value inside each head."""

    def forward(self, img: Tensor, txt: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        length = txt.size(1)
        joined = torch.cat([self.txt_qkv(txt + emb[:, None]), self.img_qkv(img + emb[:, None])], dim=1)
        b, n, _ = joined.shape
        q, k, v = joined.view(b, n, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q[:, :, length:], k, v)
        img = img + self.img_out(mixed.transpose(1, 2).reshape(b, n - length, -1))
        return img + self.img_mlp(img), txt


class LastModel(TurnedModel):
    def __init__(self) -> None:
        super().__init__()
        self.double_blocks[-1] = LastDual()


class LastByHeadsModel(TurnedModel):
    def __init__(self) -> None:
        super().__init__()
        self.double_blocks[-1] = LastByHeads()


class Fat(nn.Module):
    """All of it in one module: attention, MLP, the sum; the heads' width from the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = NHEAD
        self.norm, self.qkv = nn.LayerNorm(DIM), nn.Linear(DIM, DIM * 3)
        self.proj, self.fc1, self.fc2 = nn.Linear(DIM, DIM), nn.Linear(DIM, MLP), nn.Linear(MLP, DIM)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        size = x.size(-1)
        y = self.norm(x) + emb[:, None]
        heads = self.qkv(y).view((len(y), y.size(1), 3, self.num_heads, size // self.num_heads))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.mT / HEAD_DIM**0.5, dim=-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(len(y), x.size(1), size))
        return x + self.fc2(self.fc1(x).relu())


class FatModel(Trunk):
    def build(self) -> None:
        self.layers = nn.ModuleList(Fat() for _ in range(3))
