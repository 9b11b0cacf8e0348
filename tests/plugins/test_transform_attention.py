"""Replaced attentions: worked by hand, near to what they were, logged, pruned before and after, exported."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from test_transform import wan_bundle
from torch import Tensor, nn
from toy import part, tiny_bundle

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.export import dit_step, export_components
from dit_compress.model.bundle import Bundle
from dit_compress.model.cut import compact, example_output, masked_output
from dit_compress.model.denoiser import Cond, Denoiser
from dit_compress.structure.compact import relative_error
from dit_compress.testing.granularities import odd_plan
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import tiny_context
from dit_compress.testing.transforms import TransformContract
from dit_compress_plugins.transform_attention.global_local import GlobalLocal, coarse, local_attention
from dit_compress_plugins.transform_attention.linconv import LinearConvolution, linear_attention, shifted
from dit_compress_plugins.transform_attention.places import replaceable
from dit_compress_plugins.transform_attention.step import chosen, replace
from dit_compress_plugins.transform_attention.stride import Strided, places
from dit_compress_plugins.transform_attention.swap import Seen

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow(60)

torch.set_num_threads(1)

KINDS = ("linconv", "stride", "global_local")
GRID = (2, 3, 4)


def qkv(grid: tuple[int, int, int] = GRID, heads: int = 2, width: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, math.prod(grid), width) for _ in range(3)]


def mixed(kinds: tuple[str, ...] = KINDS, prefix: str = "transformer_blocks") -> dict[str, str]:
    return {f"{prefix}.{index}": kind for index, kind in enumerate(kinds)}


# ------------------------------------------------------------------ by hand


def test_the_linear_form_is_the_quadratic_form() -> None:
    """Features rotated above the line, plain ones below it."""
    q, k, v = qkv()
    plain_q, plain_k = F.softplus(q), F.softplus(k)
    weights = q @ k.mT / (plain_q @ plain_k.mT).sum(-1, keepdim=True)
    torch.testing.assert_close(linear_attention(q, k, v, plain_q, plain_k), weights @ v, rtol=2e-6, atol=2e-7)


def test_zero_queries_and_keys_give_the_mean_of_the_values() -> None:
    mixer = LinearConvolution(1, 1)
    mixer.start()
    zero = mixer.feature("query", torch.zeros(1, 1, 2, 1))
    torch.testing.assert_close(zero, torch.full_like(zero, math.log(2)))
    found = linear_attention(zero, zero, torch.tensor([2.0, 6.0]).reshape(1, 1, 2, 1), zero, zero)
    assert found.flatten().tolist() == [4.0, 4.0]


@pytest.mark.parametrize("causal", [False, True])
def test_the_convolution_is_a_3d_one_of_shifted_2d_ones(causal: bool) -> None:
    """Depthwise, 3x3x3; the causal one is padded before the first frame alone."""
    _, _, v = qkv(grid := (4, 3, 5))
    mixer = LinearConvolution(2, 8, causal=causal)
    assert mixer.back == ((2, 1, 0) if causal else (1, 0, -1))
    weight = torch.stack([conv.weight for conv in mixer.taps], 2)
    video = v.transpose(2, 3).reshape(2, 16, *grid)
    wanted = F.conv3d(F.pad(video, (1, 1, 1, 1, *((2, 0) if causal else (1, 1)))), weight, groups=16)
    found = mixer.convolution(v, grid)
    torch.testing.assert_close(found, wanted.reshape(2, 2, 8, -1).transpose(2, 3), rtol=1e-5, atol=1e-6)
    assert shifted(torch.arange(3.0), 1, 3).tolist() == [0, 0, 1]
    mixer.start()
    torch.testing.assert_close(mixer.convolution(v, grid), v)


def test_strides_of_one_are_the_old_attention_and_others_repeat_what_stays() -> None:
    q, k, v = qkv()
    seen = Seen(grid=GRID, scale=0.3)
    torch.testing.assert_close(Strided((1, 1, 1))(q, k, v, seen), F.scaled_dot_product_attention(q, k, v, scale=0.3))
    kept, back = places((1, 3, 4), (1, 2, 2), "cpu")
    assert kept.tolist() == [0, 2, 8, 10]
    assert back.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3]


def test_all_local_is_the_old_attention_where_blocks_see_all() -> None:
    """With a radius of blocks - 1; with a smaller one a block sees its neighbours, and a coarse key is a mean of four."""
    q, k, v = qkv()
    mixer = GlobalLocal(2, 8, 16, blocks=5, radius=4)
    mixer.start()
    nn.init.constant_(mixer.gate.bias, 40.0)
    tokens = torch.randn(2, 24, 16)
    torch.testing.assert_close(mixer(q, k, v, Seen(GRID, tokens=tokens)), F.scaled_dot_product_attention(q, k, v))
    near = local_attention(q, k, v, 4, 1)
    torch.testing.assert_close(
        near[:, :, 6:12], F.scaled_dot_product_attention(q[:, :, 6:12], k[:, :, :18], v[:, :, :18])
    )
    means = coarse(v, GRID, mixer.value)
    assert means.shape == (2, 2, 2 * 2 * 2, 8)
    torch.testing.assert_close(means[:, :, 0], v[:, :, [0, 1, 4, 5]].mean(2))
    torch.testing.assert_close(means[:, :, 3], v[:, :, [10, 11]].mean(2), msg="an odd edge is repeated")


# ------------------------------------------------------------------ the contract, and pruning


def step(blocks: dict[str, str], **options: Any) -> Any:
    return part("transform", "attention", blocks=blocks, **{"fit": 4, **options})


class TestAllKinds(TransformContract):
    def step(self) -> Any:
        return step(mixed(), linconv={"causal": True})


class TestOfWan(TransformContract):
    """Norms across heads, arguments by name, a patch of 2x2."""

    def bundle(self, folder: Path) -> Bundle:
        return wan_bundle(folder)

    def step(self) -> Any:
        return step({"*": "linconv"})


@pytest.mark.parametrize("name", ["video_dit", "ltx", "wan"])
def test_heads_are_pruned_before_and_after(name: str) -> None:
    """Masked equals compact in float64; every kind still has the heads that the block had."""
    denoiser = tiny_denoiser(name).double()
    heads = part("granularity", "head")
    axes = [axis for axis in heads.axes(denoiser.structure()) if ".attn1" in axis.name]
    compact(denoiser, axes, {axis.name: (0, 1, 3) for axis in axes})
    replace(denoiser, mixed(prefix="blocks" if name == "wan" else "transformer_blocks"))
    with torch.no_grad():
        for key, value in denoiser.module.named_parameters():
            if ".mixer." in key:
                value.add_(torch.randn_like(value) * 0.1)
    axes = heads.axes(denoiser.structure())
    assert [axis.units for axis in axes if ".attn1" in axis.name] == [3, 3, 3]
    kept = odd_plan(axes)
    wanted, whole = masked_output(denoiser, axes, kept), example_output(denoiser)
    assert relative_error(wanted, whole) > 1e-3
    compact(denoiser, axes, kept)
    assert relative_error(example_output(denoiser), wanted) < 1e-10
    gate: Any = denoiser.module.get_parameter(
        f"{'blocks' if name == 'wan' else 'transformer_blocks'}.0.attn1.mixer.gate"
    )
    assert gate.shape == (2, 1, 1)


def test_the_step_says_how_near_and_its_folder_needs_the_plugin(tmp_path: Path) -> None:
    before = tiny_bundle(tmp_path / "bundle")
    result = step(mixed(("full", "linconv", "global_local")), fit=30).run(tiny_context(tmp_path / "step", input=before))
    metrics = result.metrics
    assert metrics["replaced"] == 2
    assert 0 < metrics["block_error_max"] < metrics["attention_error_mean"] < metrics["start_error_mean"] < 1
    assert set(dit_compress.core.files.read_json(tmp_path / "step" / "attention.json")["blocks"]) == {
        "transformer_blocks.1",
        "transformer_blocks.2",
    }
    module: Any = dit_compress.load(result.bundle.path)
    with pytest.raises(
        UserError, match=r"^the transform 'attention' needs its plugin, and a pruned folder loads without"
    ):
        module.save_pretrained(tmp_path / "folder")


# ------------------------------------------------------------------ any DiT


class Block(nn.Module):
    """One linear for query, key and value, in the block itself; grouped keys, a mask, or text among the tokens."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.n = what, 2
        if what == "grouped":
            self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 16)
        else:
            self.qkv = nn.Linear(16, 48)
        self.proj, self.mlp = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        y = torch.cat([F.layer_norm(x, (16,)), text], 1) if self.what == "joint" else F.layer_norm(x, (16,))
        if self.what == "grouped":
            q = self.q(y).unflatten(-1, (2, 8)).transpose(1, 2)
            k, v = self.kv(y).unflatten(-1, (2, 1, 8)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        elif self.what == "softmax":
            q, k, v = self.qkv(y).unflatten(-1, (3, self.n, 8)).permute(2, 0, 3, 1, 4)
            mixed = (q @ k.mT / 8**0.5).softmax(-1) @ v
        else:
            q, k, v = self.qkv(y).unflatten(-1, (3, self.n, 8)).permute(2, 0, 3, 1, 4)
            mask = torch.zeros(q.shape[2], q.shape[2]).to(q) if self.what == "masked" else None
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))[:, : x.shape[1]]
        return x + self.mlp(F.gelu(x))


class Plain(nn.Module):
    """A DiT of nobody's library."""

    def __init__(self, *blocks: str, packed: bool = False) -> None:
        super().__init__()
        self.packed = packed
        self.enter, self.leave, self.clock = nn.Linear(4, 16), nn.Linear(16, 4), nn.Linear(1, 16)
        self.blocks = nn.ModuleList(Block(what) for what in blocks)

    def forward(self, latent: Tensor, t: Tensor, text: Tensor) -> Tensor:
        tokens = latent if self.packed else latent.flatten(2).transpose(1, 2)
        x = self.enter(tokens) + self.clock(t[:, None])[:, None]
        for block in self.blocks:
            x = block(x, text)
        y = self.leave(x)
        return y if self.packed else y.transpose(1, 2).unflatten(2, latent.shape[2:])


class PlainDenoiser(Denoiser):
    channels, patch = 4, (1, 1, 1)  # type: ignore[assignment]

    def call(self, latent: Tensor, sigma: Tensor, cond: Cond) -> Any:
        tokens = latent.flatten(2).transpose(1, 2) if self.module.packed else latent
        return (tokens, sigma, cond["text"]), {}

    def velocity(self, output: Any, latent: Tensor, sigma: Tensor) -> Tensor:
        return output.transpose(1, 2).unflatten(2, latent.shape[2:]) if self.module.packed else output

    def example(self, batch: int, size: tuple[int, int, int], *, text_length: int = 8) -> Any:
        text = torch.randn(batch, text_length, 16)
        return torch.randn(batch, 4, *size), torch.rand(batch), Cond({"text": text}, {"text": text[:1]})


def plain(*blocks: str, packed: bool = False) -> PlainDenoiser:
    torch.manual_seed(0)
    return PlainDenoiser(Plain(*blocks, packed=packed))


def test_a_plain_dit_is_replaced_at_any_size() -> None:
    denoiser = plain("usual", "usual", "usual")
    found = replaceable(denoiser)
    assert found.axes == {axis: ["latent", dim, 1] for axis, dim in zip("THW", (2, 3, 4), strict=True)}
    assert [(place.owner, place.call, place.heads, place.width) for place in found.places.values()] == [
        (f"blocks.{index}", 0, 2, 8) for index in range(3)
    ]
    assert found.places["blocks.0"].query.data() == {
        "module": "qkv", "shape": "BSD", "width": 8, "parts": 3, "part": 0
    }  # fmt: skip
    replace(denoiser, mixed(prefix="blocks"))
    assert [item.heads for item in denoiser.structure().attentions] == [2, 2, 2]
    for size in ((1, 2, 2), (3, 5, 4)):
        x, sigma, cond = denoiser.example(2, size)
        one, other = denoiser(x, sigma, cond), denoiser(x.flip(0), sigma.flip(0), cond.take(torch.tensor([1, 0])))
        assert one.shape == x.shape
        torch.testing.assert_close(one, other.flip(0))


REFUSED = {
    "joint": "it attends to 71 keys from 71 tokens, of which the latent has 60: text among the tokens, or windows",
    "grouped": "queries, keys and values differ in heads or width: [1, 2, 60, 8], [1, 1, 60, 8], [1, 1, 60, 8]",
    "masked": "its scores have a mask",
    "softmax": "it doesn't call scaled_dot_product_attention, in whose place another could stand",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_replaced_is_refused_by_name_and_left_by_a_pattern(what: str) -> None:
    denoiser = plain("usual", what)
    found = replaceable(denoiser)
    assert (list(found.places), found.refused) == (["blocks.0"], {"blocks.1": REFUSED[what]})
    with pytest.raises(UserError) as caught:
        replace(denoiser, {"blocks.1": "stride"})
    assert str(caught.value) == (
        f"the self-attention of 'blocks.1' can't become 'stride': {REFUSED[what]}. "
        "Leave the block out, or name it by a pattern ('*'), which leaves what can't be replaced"
    )


def test_a_model_that_is_not_told_its_grid_is_refused() -> None:
    found = replaceable(plain("usual", packed=True))
    why = "no argument of the model's call tells the height and width of the token grid"
    assert found.refused == {"blocks.0": why}
    with pytest.raises(UserError) as caught:
        chosen(found, {"*": "stride"})
    assert str(caught.value) == (
        f"no self-attention that 'blocks' names can be replaced: that of 'blocks.0' can't become 'stride': {why}. "
        "Leave this step out"
    )


def test_names_that_fit_nothing_are_refused_and_what_is_left_is_said(tmp_path: Path) -> None:
    spec = tiny_bundle(tmp_path / "bundle").spec
    with pytest.raises(UserError) as caught:
        step({"blocks.*": "stride"}).plan(spec)
    assert str(caught.value).startswith(
        "'blocks' names 'blocks.*'; there are transformer_blocks.0, transformer_blocks.1"
    )
    planned = step({"transformer_blocks.1": "full", "*": "stride"}).plan(spec).need_denoiser().log[-1]
    assert [place["owner"] for place in planned["data"]["places"]] == [
        "transformer_blocks.0.attn1",
        "transformer_blocks.2.attn1",
    ]
    twice = step(mixed(("stride",)))
    with pytest.raises(UserError, match=r"its self-attention was replaced already"):
        twice.plan(twice.plan(spec))


def test_blocks_that_run_again_in_the_backward_pass_have_the_same_gradients() -> None:
    """Gradient checkpointing, with another size called between."""
    denoiser = tiny_denoiser("video_dit")
    replace(denoiser, mixed())
    x, sigma, cond = denoiser.example(1, (2, 3, 4))
    found = []
    for again in (False, True):
        denoiser.module.gradient_checkpointing = again
        denoiser.module._gradient_checkpointing_func = lambda block, *args: torch.utils.checkpoint.checkpoint(
            block, *args, use_reentrant=False
        )
        loss = denoiser(x, sigma, cond).square().mean()
        denoiser(*denoiser.example(1, (1, 2, 2)))
        found.append(torch.autograd.grad(loss, [p for n, p in denoiser.named_parameters() if "mixer" in n]))
    assert len(found[0]) == 13
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        assert one.any()


# ------------------------------------------------------------------ export


@cache
def component() -> Any:
    denoiser = tiny_denoiser("video_dit")
    replace(denoiser, mixed())
    torch.manual_seed(1)
    latent, _, cond = denoiser.example(1, (2, 3, 4))
    return dit_step(denoiser, latent, dict(cond))


@pytest.mark.parametrize(("target", "needs"), [
    ("onnx", "onnxruntime"), ("coreml", "coremltools"), ("executorch", "executorch"), ("coreai", "coreai_torch"),
])  # fmt: skip
def test_every_target_computes_it_within_its_gates(target: str, needs: str, tmp_path: Path) -> None:
    pytest.importorskip(needs)
    made = part("export", target, **({"precision": "float32"} if target == "coreai" else {}))
    report = export_components(made, [component()], made.profile, tmp_path / "out")
    assert report["passed"], report["rows"]
