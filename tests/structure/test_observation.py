"""Structure by observation, on DiTs in plain torch: what is found, what is exact, what is refused, what is caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import plain_dits
import pytest
import torch
import torch.nn.functional as F
from plain_dits import (
    CHANNELS,
    HEAD_WIDTH,
    HEADS,
    TEXT,
    TOKENS,
    WIDTH,
    Across,
    Einsum,
    Fused,
    JointModel,
    Model,
    Table,
    Torch,
)
from torch import Tensor, nn

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.denoiser import Cond, Denoiser
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.compact import CompactionError, block_axis, compact_module, disagreement
from dit_compress.structure.edits import compile_edits, edits_from_data
from dit_compress.structure.facts import Axis, FeedForward, Kept, MaskPoint, Member, Structure
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.structure.observe.attributes import read_integers
from dit_compress.structure.observe.discover import observe
from dit_compress.structure.observe.probe import noise_like
from dit_compress.structure.observe.weightless import Replica
from dit_compress.structure.precision import in_double
from dit_compress.structure.record import Call
from dit_compress.structure.tombstone import Tombstone

MODELS: dict[str, tuple[Any, int, list[int], list[int]]] = {
    "fused": (lambda: Model(Fused), 3, [HEADS], [CHANNELS]),
    "einsum": (lambda: Model(Einsum), 3, [HEADS], [CHANNELS]),
    "torch": (lambda: Model(Torch), 3, [HEADS, HEADS], [CHANNELS]),
    "table": (lambda: Model(Table), 3, [HEADS], [CHANNELS]),
    "joint": (JointModel, 4, [HEADS], [CHANNELS]),
}
"""Name → model, blocks, units of each attention of a block, channels of each feed-forward: read from the source."""


def make(name: str) -> tuple[nn.Module, Call]:
    torch.manual_seed(0)
    module = MODELS[name][0]().double().eval()
    return module, recorded(module)


def recorded(module: nn.Module) -> Call:
    x, t = torch.randn(2, TOKENS, 4).double(), torch.rand(2).double()
    text = (torch.randn(2, TEXT, 4).double(),) if isinstance(module, JointModel) else ()
    with dit_compress.record(module) as call:
        module(x, *text, t)
    return call


def axes_of(structure: Structure, *levels: str) -> list[Axis]:
    every = {
        "block": [block_axis(structure.main)],
        "head": [part.axis("head") for part in structure.attentions],
        "ffn": [part.axis("ffn") for part in structure.feed_forwards],
    }
    return [axis for level in levels for axis in every[level]]


def odd_plan(axes: list[Axis]) -> Kept:
    return {axis.name: tuple(u for u in range(axis.units) if u != 1 and (axis.units < 6 or u % 3)) for axis in axes}


@pytest.mark.parametrize("name", MODELS)
def test_what_the_source_says_is_found(name: str) -> None:
    structure = observe(*make(name))
    _, depth, heads, channels = MODELS[name]
    assert (structure.main.path, structure.main.length) == ("blocks", depth)
    assert [part.heads for part in structure.attentions] == heads * depth
    assert [part.width for part in structure.feed_forwards] == channels * depth
    assert structure.refusals == ()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("levels", [("block",), ("head",), ("ffn",), ("block", "head", "ffn")], ids="+".join)
def test_masked_equals_compact(name: str, levels: tuple[str, ...]) -> None:
    module, call = make(name)
    axes = axes_of(observe(module, call), *levels)
    kept = odd_plan(axes)
    whole = call.replay(module)
    with masked(module, axes, hard_masks(axes, kept, torch.zeros(1).double())):
        reference = call.replay(module)
    assert disagreement(reference, whole) > 1e-3, "the plan must change the output, or the test proves nothing"
    before = sum(p.numel() for p in module.parameters())
    entry = compact_module(module, call, axes, kept)
    assert sum(p.numel() for p in module.parameters()) < before
    assert disagreement(call.replay(module), reference) < 1e-12
    again, _ = make(name)
    apply_edits(again, edits_from_data(entry["data"]["edits"]))
    again.load_state_dict(module.state_dict())
    assert torch.equal(call.replay(again), call.replay(module))


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_model_is_pruned_again(name: str) -> None:
    module, call = make(name)
    for left in (2, 1):
        axes = axes_of(observe(module, call), "head", "ffn")
        compact_module(module, call, axes, {axis.name: tuple(range(1, axis.units)) for axis in axes})
        assert {part.heads for part in observe(module, call).attentions} == {left}
        assert {part.width for part in observe(module, call).feed_forwards} == {CHANNELS - 3 + left}


@pytest.mark.parametrize("name", ["fused", "table", "joint"])
def test_the_units_are_those_of_the_source(name: str) -> None:
    """Rows of unit 1, by hand: contiguous thirds, grouped queries, head-major triples."""
    part = observe(*make(name)).attentions[0]
    rows = {
        member.tensor.removeprefix("blocks.0."): member.indices[1].tolist()
        for member in part.members
        if member.dim == 0
    }
    k = HEAD_WIDTH
    if name == "fused":
        assert rows["qkv.weight"] == [*range(k, 2 * k), *range(4 * k, 5 * k), *range(7 * k, 8 * k)]
    elif name == "table":
        assert (rows["q.weight"], rows["k.weight"], rows["gate.weight"]) == (list(range(8, 16)), [4, 5, 6, 7], [2, 3])
        assert rows["bias"] == rows["heat"] == [2, 3]
        assert rows["norm.weight"] == list(range(8, 16))
    else:
        assert rows["image.weight"] == rows["text.weight"] == list(range(3 * k, 6 * k))


def test_depth_coupled_to_an_index_keeps_its_length() -> None:
    module, call = make("joint")
    stack = observe(module, call).main
    assert (stack.stream, stack.output, stack.deletable) == (1, 1, False)
    axes = [block_axis(stack)]
    compact_module(module, call, axes, {axes[0].name: (0, 2, 3)})
    assert [type(block) is Tombstone for block in module.blocks] == [False, True, False, False]


def test_depth_without_an_index_is_deleted() -> None:
    module, call = make("fused")
    axes = [block_axis(observe(module, call).main)]
    compact_module(module, call, axes, {axes[0].name: (0, 2)})
    assert len(module.blocks) == 2


def test_a_layer_norm_across_heads_is_refused_with_a_reason() -> None:
    torch.manual_seed(0)
    module = Model(Across).double()
    structure = observe(module, recorded(module))
    assert structure.attentions == ()
    assert len(structure.feed_forwards) == 3
    assert {refusal.path for refusal in structure.refusals} == {f"blocks.{index}" for index in range(3)}
    assert all("heads" in refusal.reason for refusal in structure.refusals)


# ------------------------------------------------------------------ without weights


@pytest.mark.parametrize("name", ["fused", "table"])
def test_a_module_on_meta_has_the_same_structure(name: str) -> None:
    module, call = make(name)
    empty = MODELS[name][0]().to("meta").eval()
    assert observe(empty, call) == observe(module, call)


def test_the_weights_are_not_read_and_not_changed() -> None:
    module, call = make("fused")
    expected = observe(module, call)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    from dit_compress.structure.observe import discover

    discover._STRUCTURES.found.clear()
    discover._BLOCKS.found.clear()
    assert observe(module, call) == expected
    assert all(parameter.isnan().all() for parameter in module.parameters())


# ------------------------------------------------------------------ mutations are caught


def stale_count(axis: Axis) -> Axis:
    return replace(axis, follows=())


def unscaled_norm(axis: Axis) -> Axis:
    return replace(axis, across=())


def wrong_pairing(axis: Axis) -> Axis:
    """Gates one channel further than their values."""
    members = [
        replace(m, indices=np.roll(m.indices, 1, axis=0)) if m.tensor.endswith(("depth.weight", "depth.bias")) else m
        for m in axis.members
    ]
    return replace(axis, members=tuple(members))


def interleaved_heads(axis: Axis) -> Axis:
    """Head width and head number exchanged in the fused projection."""
    members = [replace(m, indices=m.indices.T.reshape(m.indices.shape)) if m.dim == 0 else m for m in axis.members]
    return replace(axis, members=tuple(members))


def shifted_block(axis: Axis) -> Axis:
    assert axis.blocks is not None
    return replace(axis, blocks=replace(axis.blocks, deletable=True))


@pytest.mark.parametrize(
    ("name", "level", "mutate"),
    [
        ("fused", "head", interleaved_heads),
        ("table", "head", stale_count),
        ("table", "head", unscaled_norm),
        ("table", "ffn", wrong_pairing),
        ("joint", "block", shifted_block),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_mutation_is_caught_for_every_unit(name: str, level: str, mutate: Any) -> None:
    module, call = make(name)
    axes = [mutate(axis) for axis in axes_of(observe(module, call), level)]
    first = axes[0]
    for unit in range(min(first.units - 1, 3)):
        broken, _ = make(name)
        kept = {first.name: tuple(u for u in range(first.units) if u != unit)}
        with pytest.raises((CompactionError, UserError)):
            compact_module(broken, call, [first], kept)


# ------------------------------------------------------------------ the proof is in float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_in_double_is_that_of_the_model_in_double(name: str, dtype: torch.dtype) -> None:
    module, call = make(name)
    module, call = module.to(dtype), call.map(lambda x: x.to(dtype))
    with in_double():
        found = call.replay(module)
    assert next(module.parameters()).dtype == dtype
    expected = call.map(Tensor.double).replay(module.double())
    assert found.dtype == torch.float64
    assert disagreement(found, expected) < 1e-14


class AsksForSingle(nn.Module):
    """Casts by name, writes in place, makes new tensors: 1 + 2⁻³⁰ is 1 in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        made = torch.zeros(2)
        made += x.float()
        made[:1] = self.weight[:1] + 2.0**-30
        return made.to(self.weight.dtype) * self.weight


def test_in_double_nothing_is_rounded_to_single() -> None:
    module, x = AsksForSingle(), torch.full((2,), 1 + 2.0**-30, dtype=torch.float64)
    with torch.no_grad():
        assert module(x).tolist() == [1, 1]
        with in_double():
            assert module(x).tolist() == [1 + 2.0**-30, 1 + 2.0**-30]
        assert torch.zeros(1).dtype == torch.float32


def without_eps(module: nn.Module, axes: Any, kept: Kept) -> list[Any]:
    return [e for e in compile_edits(module, axes, kept) if getattr(e, "attribute", "") != "eps"]


def test_a_fault_below_single_precision_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epsilon that does not follow changes less than float32 shows."""
    module, call = make("table")
    module, call = module.float(), call.map(Tensor.float)
    axes = axes_of(observe(module, call), "head")
    kept = odd_plan(axes)
    with masked(module, axes, hard_masks(axes, kept, torch.zeros(1))):
        reference = call.replay(module)
    monkeypatch.setattr("dit_compress.structure.compact.compile_edits", without_eps)
    with pytest.raises(CompactionError, match="differ"):
        compact_module(module, call, axes, kept)
    assert disagreement(call.replay(module), reference) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_that_takes_its_epsilon_from_the_precision(dtype: torch.dtype) -> None:
    module, call = make("table")
    for block in module.blocks:
        block.norm.eps = None
    module, call = module.to(dtype), call.map(lambda x: x.to(dtype))
    axes = axes_of(observe(module, call), "head")
    compact_module(module, call, axes, odd_plan(axes))
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert module.blocks[0].norm.eps == pytest.approx(eps * 3 / 2)


def test_a_kernel_without_float64_is_proven_in_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = plain_dits.attend

    def single_only(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dtype == torch.float64:
            raise RuntimeError("no kernel for float64")
        return attend(q, k, v)

    module, call = make("fused")
    module, call = module.float(), call.map(Tensor.float)
    axes, again = axes_of(observe(module, call), "head"), make("fused")[0].float()
    monkeypatch.setattr(plain_dits, "attend", single_only)
    compact_module(module, call, axes, odd_plan(axes))
    with pytest.raises(CompactionError):
        compact_module(again, call, [interleaved_heads(axis) for axis in axes], odd_plan(axes))


# ------------------------------------------------------------------ what a model plugin says


class Plain(Denoiser):
    """The fused model behind the engine's convention, with a feed-forward behind its blocks."""

    channels, patch = 4, (1, 1, 1)

    def __init__(self, block: type[nn.Module] = Fused) -> None:
        torch.manual_seed(0)
        module = Model(block)
        module.leave = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, 4))
        super().__init__(module)

    def call(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (latent_BCTHW.flatten(2).transpose(1, 2), sigma_B), {}

    def velocity(self, output: Any, latent_BCTHW: Tensor, sigma_B: Tensor) -> Tensor:
        return output.transpose(1, 2).reshape(latent_BCTHW.shape)

    def example(self, batch: int, size_THW: Any, *, text_length: int = 8) -> tuple[Tensor, Tensor, Cond]:
        like = self.module.enter.weight
        latent = torch.randn(batch, 4, *size_THW, device=like.device, dtype=like.dtype)
        return latent, torch.rand(batch, device=like.device, dtype=like.dtype), Cond({}, {})


class Corrected(Plain):
    """Adds the feed-forward that discovery does not look for, and keeps the first attention whole."""

    start = 0

    def structure(self) -> Structure:
        found = super().structure()
        units = self.module.leave[0].out_features
        members = (
            Member.equal("leave.0.weight", 0, units),
            Member.equal("leave.0.bias", 0, units),
            Member("leave.2.weight", 1, np.roll(np.arange(units)[:, None], self.start)),
        )
        masks = (MaskPoint("leave.2", "input", members[2].indices),)
        extra = FeedForward("leave", found.main.path, found.main.length - 1, units, members, masks)
        kept = tuple(part for part in found.attentions if part.block != 0)
        return replace(found, attentions=kept, feed_forwards=(*found.feed_forwards, extra))


def test_what_a_model_plugin_says_is_used() -> None:
    denoiser = Corrected()
    assert len(Plain().structure().feed_forwards) == 3
    dit_compress.prune(denoiser, remove={"head": 1}, keep={"ffn": 0.75})
    assert [block.qkv.out_features for block in denoiser.module.blocks] == [72, 48, 48]
    assert [block.mlp[0].out_features for block in denoiser.module.blocks] == [15, 15, 15]
    assert (denoiser.module.leave[0].out_features, denoiser.module.leave[2].in_features) == (12, 12)


def test_what_a_model_plugin_says_wrongly_is_refused() -> None:
    denoiser = Corrected()
    denoiser.start = 1
    with pytest.raises(UserError, match="differ by .* Write a model plugin"):
        dit_compress.prune(denoiser, keep={"ffn": 0.75})
    assert denoiser.module.leave[0].out_features == 16


def test_a_granularity_that_finds_nothing_says_why() -> None:
    denoiser = Plain(Across)
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    reason = r"level 'head' finds nothing .*blocks.0: 3 heads: no set of attributes .* Leave it out of 'levels'"
    with pytest.raises(UserError, match=reason):
        dit_compress.prune(denoiser, remove={"head": 1})
    after = denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# ------------------------------------------------------------------ recorded calls


class Moody(nn.Module):
    """Takes another way for other values."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            raise ValueError("only negative inputs, please")
        return self.lin(x)


def test_a_recorded_call_that_fails_is_a_users_error() -> None:
    call = Call((torch.ones(2, 4),), {}, recorded=True)
    with pytest.raises(UserError, match=r"Moody: the recorded call fails: ValueError: only negative inputs"):
        call.replay(Moody())
    with pytest.raises(UserError, match=r"the recorded call fails .* only negative inputs.* Record a call"):
        observe(Moody(), call)


class Fickle(nn.Module):
    """Which projection follows depends on the values of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.a, self.b = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.Linear(8, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = F.gelu(self.up(x + t[:, None]))
        return x + (self.a(y) if (y.sum() * 1e6).sin() > 0 else self.b(y))


def test_control_flow_that_depends_on_values_is_refused_with_a_reason() -> None:
    torch.manual_seed(0)
    module = Model(Fickle).double()
    structure = observe(module, recorded(module))
    assert structure.main.length == 3
    assert structure.attentions == structure.feed_forwards == ()
    assert {refusal.path for refusal in structure.refusals} == {f"blocks.{index}" for index in range(3)}
    assert all("control flow depends on values" in refusal.reason for refusal in structure.refusals)


def test_a_model_that_was_not_called_is_a_users_error() -> None:
    with pytest.raises(UserError, match="was not called"), dit_compress.record(Moody()):
        pass


def test_a_model_without_blocks_has_no_main_stack() -> None:
    call = Call((-torch.ones(2, 4),), {}, recorded=True)
    structure = observe(Moody(), call)
    assert structure.stacks == ()
    with pytest.raises(UserError, match="no list of blocks"):
        _ = structure.main


def test_the_first_call_is_recorded_and_detached() -> None:
    module, x = Moody(), -torch.ones(2, 4, requires_grad=True)
    with dit_compress.record(module) as call:
        first = module(x)
        module(x - 1)
    assert torch.equal(call.args[0], x)
    assert not call.args[0].requires_grad
    assert torch.equal(call.replay(module), first)
    assert module.training


class Rectified(nn.Module):
    """A squared rectifier with many channels: with two tokens most runs show nothing of some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 20 * CHANNELS), nn.Linear(20 * CHANNELS, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + t[:, None] + self.down(self.up(F.layer_norm(x, (WIDTH,))).relu().square())


def test_a_rectifier_hides_no_channel_of_few_tokens() -> None:
    """Two tokens: a channel is shut in a run with probability 1/4, so that chance would hide 25 of 400."""
    module = Model(Rectified, depth=2)
    structure = observe(module, Call((torch.randn(1, 2, 4), torch.rand(1)), recorded=True))
    assert [part.count for part in structure.feed_forwards] == [20 * CHANNELS] * 2
    assert [len(part.follows) for part in structure.feed_forwards] == [0, 0]


class Informed(nn.Module):
    """Integers that a run reads, and others that say the same and are not read; a processor holds some."""

    class Split:
        def __init__(self) -> None:
            self.parts, self.copies = HEADS, HEADS

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.num_heads, self.kept = HEADS, HEADS, WIDTH
        self.split = Informed.Split()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = F.layer_norm(x + t[:, None], (WIDTH,))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(y).chunk(3, -1))
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj(heads.unflatten(2, (self.split.parts, -1)).flatten(2))


def test_only_integers_that_a_run_reads_follow() -> None:
    """And only they are tried; the objects have their own classes afterwards, and the model computes as before."""
    module = Model(Informed, depth=1).double()
    call = recorded(module)
    before = call.replay(module)
    block = Replica(module.blocks[0], Call((torch.randn(1, 2, WIDTH), torch.randn(1, WIDTH)), recorded=True))
    (attention,) = observe(module, call).attentions
    assert {(follow.module, follow.attribute) for follow in attention.follows} == {
        ("blocks.0", "heads"),
        ("blocks.0", "split.parts"),
    }
    assert read_integers(block) == {("", "heads"), ("", "split.parts")}
    assert type(block.module) is Informed
    assert type(block.module.split) is Informed.Split
    assert torch.equal(call.replay(module), before)


def test_other_numbers_for_arguments_are_not_those_of_matmuls() -> None:
    """An argument that got the numbers it had showed nothing."""
    replica = Replica(nn.Identity(), Call((), recorded=True))
    drawn = [replica.normal(place, (4,)) for place in range(-20, 20)]
    made = [noise_like(torch.zeros(4, dtype=torch.float64), seed) for seed in range(20)]
    assert len({tuple(numbers.tolist()) for numbers in (*drawn, *made)}) == 60
