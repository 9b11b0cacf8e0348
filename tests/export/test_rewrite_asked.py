"""Rewrites that a device asks for: few axes, 1×1 convolutions, attention in slices, to the bounds stated for them."""

from __future__ import annotations

from functools import cache
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exporters import seeded
from torch import Tensor, nn
from torch.fx.node import map_arg

from dit_compress.export import Component, Profile, check_components, dit_step, export_components
from dit_compress.export.rewrite import (
    flatten_convolutions,
    linears_as_convolutions,
    lower_ranks,
    patches_as_linears,
    slice_attention,
)
from dit_compress.export.rewrite.ranks import steps
from dit_compress.export.tracing import copied
from dit_compress.model.one_of_each import shorten
from dit_compress.plugin.registry import use
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress_plugins.export_onnx import ONNXOptions
from dit_compress_plugins.export_onnx.exporter import ONNXExport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch.fx import Node

torch.set_num_threads(1)

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
SIZE = (2, 4, 4)


def graph_of(inputs: list[Tensor], make: Callable[[Callable[..., Node], list[Node]], Node]) -> Any:
    """A program by hand: ``make`` is given a function that adds an operator, and the inputs' nodes."""
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(f"x{index}") for index in range(len(inputs))]
    for node, value in zip(nodes, inputs, strict=True):
        node.meta["val"] = value.to("meta")

    def add(target: Any, *args: Any, **kwargs: Any) -> Node:
        node = graph.call_function(target, args, kwargs)
        given, named = map_arg((args, kwargs), lambda each: each.meta["val"])
        node.meta["val"] = target(*given, **named)
        return node

    graph.output(make(add, nodes))
    return SimpleNamespace(graph_module=torch.fx.GraphModule(nn.Module(), graph))


def ranks(program: Any) -> list[int]:
    values = [node.meta.get("val") for node in program.graph_module.graph.nodes]
    return [value.ndim for value in values if isinstance(value, Tensor)]


# ------------------------------------------------------------------ few axes


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_steps_of_few_axes_move_the_same_values(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=8)))
    order, limit = tuple(data.draw(st.permutations(range(len(shape))))), data.draw(st.integers(4, 6))
    x = torch.arange(prod(shape)).reshape(shape)
    y = x
    for sizes, step in steps(shape, order, limit):
        assert len(sizes) == len(step) <= limit
        y = y.reshape(sizes).permute(step)
    assert torch.equal(y.reshape(-1), x.permute(order).reshape(-1))


@pytest.mark.parametrize(
    ("shape", "order", "wanted"),
    [
        ((1, 4, 3, 1, 2, 1, 2, 1), (0, 2, 4, 6, 1, 3, 5, 7), (((4, 12), (1, 0)),)),  # LTX patchify at patch 1
        ((1, 3, 2, 2, 1, 2, 2, 8), (0, 7, 1, 4, 2, 5, 3, 6), (((6, 2, 2, 2, 8), (4, 0, 2, 1, 3)),)),  # Wan
        ((2, 3, 4), (0, 1, 2), ()),
        ((1, 1, 7), (2, 0, 1), ()),
    ],
)
def test_steps_by_hand(shape: Any, order: Any, wanted: Any) -> None:
    """Axes of size 1 and neighbours that stay together cost nothing."""
    assert steps(shape, order, 8) == wanted


@pytest.mark.parametrize(("scale", "gone"), [(1.0, 4), (2.0, 0)])
def test_chains_through_many_axes_are_rewritten_and_what_computes_there_is_left(scale: float, gone: int) -> None:
    x = torch.arange(256.0).reshape(1, 4, 4, 4, 4)

    def make(add: Callable[..., Node], inputs: list[Node]) -> Node:
        tall = add(aten.view.default, inputs[0], [1, 4, 2, 2, 2, 2, 2, 2])
        turned = add(aten.transpose.int, add(aten.permute.default, tall, [0, 1, 5, 2, 6, 3, 7, -4]), -1, 1)
        moved = turned if scale == 1 else add(aten.mul.Tensor, turned, scale)
        same = add(aten.clone.default, moved, memory_format=torch.contiguous_format)
        return add(aten.view.default, same, [2, 4, 4, 8])

    program = graph_of([x], make)
    before = program.graph_module(x)
    assert lower_ranks(program, 3) == 0
    assert max(ranks(program)) == 8
    assert lower_ranks(program, 5) == gone
    assert max(ranks(program)) == (5 if gone else 8)
    assert torch.equal(program.graph_module(x), before)


@pytest.mark.parametrize("computed", [False, True])
def test_joins_and_slices_through_many_axes(computed: bool) -> None:
    """Halves of channels change places, are interleaved with what they were, repeated, and turned; or added to, too."""
    x = torch.arange(240.0).reshape(2, 4, 3, 2, 5)

    def make(add: Callable[..., Node], inputs: list[Node]) -> Node:
        tall = add(aten.view.default, inputs[0], [2, 2, 2, 3, 2, 5])
        halves = [add(aten.slice.Tensor, tall, 1, 1, 9223372036854775807), add(aten.slice.Tensor, tall, -5, 0, 1)]
        swapped = add(aten.cat.default, halves, 1)
        swapped = add(aten.add.Tensor, swapped, 1.0) if computed else swapped
        both = add(aten.stack.default, [add(aten.select.int, swapped, 1, 0), add(aten.select.int, tall, 1, -1)], dim=-3)
        twice = add(aten.expand.default, add(aten.unsqueeze.default, both, 2), [-1, -1, 2, -1, -1, -1, -1])
        return add(aten.reshape.default, add(aten.permute.default, twice, [0, 6, 2, 1, 4, 3, 5]), [2, 10, 2, 6, 2])

    program = graph_of([x], make)
    before, gone = program.graph_module(x), sum(rank > 5 for rank in ranks(program))
    assert lower_ranks(program, 5) == (gone - 5 if computed else gone) > 0
    assert max(ranks(program)) == (6 if computed else 5)
    assert torch.equal(program.graph_module(x), before)


# ------------------------------------------------------------------ convolutions


class Linears(nn.Module):
    """Linears over rows, tokens, grids; with and without bias; one weight twice; one that is read otherwise too."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.tokens, self.grid = nn.Linear(12, 8), nn.Linear(12, 8, bias=False), nn.Linear(12, 8)
        self.tied, self.read = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x_BHWI: Tensor) -> tuple[Tensor, ...]:
        tokens = self.tokens(x_BHWI.flatten(1, 2))
        read = nn.functional.linear(self.read(tokens), self.read.weight.relu(), self.read.bias)
        return (
            self.rows(x_BHWI[:, 0, 0]), self.rows(x_BHWI[0, 0, 0]), tokens, self.grid(x_BHWI.transpose(1, 2)),
            self.tied(tokens), self.tied(self.tied(tokens)), read,
        )  # fmt: skip


@cache
def linears() -> tuple[nn.Module, nn.Module, Any]:
    """The module, its program rewritten, and how many were."""
    torch.manual_seed(0)
    module = Linears().eval()
    program = torch.export.export(module, (torch.randn(2, 3, 4, 12),), strict=False).run_decompositions({})
    count = linears_as_convolutions(program)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(aten.conv2d.default) == count == 8
    assert targets.count(aten.linear.default) == 1  # its weight is computed
    kernel = program.state_dict["tokens.weight"]
    assert (tuple(kernel.shape), kernel.data_ptr()) == ((8, 12, 1, 1), module.tokens.weight.data_ptr())
    assert tuple(program.state_dict["read.weight"].shape) == (8, 8)
    return module, program.module(), count


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 1e-3, 1.0, 300.0]))
def test_linears_as_convolutions(seed: int, factor: float) -> None:
    """Every sum within the bound of sums in another order."""
    module, rewritten, _ = linears()
    x = torch.randn(2, 3, 4, 12, generator=torch.Generator().manual_seed(seed)) * factor
    with torch.no_grad():
        wanted, found = module(x), rewritten(x)
    for index, (layer, rows) in enumerate(
        [(module.rows, x[:, 0, 0]), (module.rows, x[0, 0, 0]), (module.tokens, x.flatten(1, 2)),
         (module.grid, x.transpose(1, 2))]
    ):  # fmt: skip
        terms = rows.abs() @ layer.weight.abs().T + (0 if layer.bias is None else layer.bias.abs())
        assert (wanted[index].shape, found[index].shape) == (terms.shape, terms.shape)
        assert ((wanted[index] - found[index]).abs() <= 2 * 12 * 2**-24 * terms).all()
    for one, other in zip(wanted[4:], found[4:], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6 * max(factor, 1.0))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"kernel_size": (1, 2, 2), "stride": (1, 2, 2)}, 1),
        ({"kernel_size": (2, 3, 2), "stride": (2, 3, 2), "bias": False}, 1),
        ({"kernel_size": (1, 2, 2), "stride": (1, 2, 1)}, 0),
        ({"kernel_size": (3, 3, 3), "padding": 1}, 0),
        ({"kernel_size": (1, 4, 4), "stride": (1, 4, 4)}, 0),  # leaves cells over
        ({"kernel_size": (1, 2, 2), "stride": (1, 2, 2), "groups": 2}, 0),
    ],
)
def test_patches_as_linears(options: dict[str, Any], count: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv3d(4, 6, **options), torch.randn(2, 4, 4, 6, 6)
    bias = None if layer.bias is None else layer.bias.abs()
    program = torch.export.export(layer, (x,), strict=False).run_decompositions({})
    assert patches_as_linears(program) == count
    assert any("conv" in str(node.target) for node in program.graph.nodes) is not bool(count)
    width = layer.weight[0].numel()
    terms = torch.conv3d(x.abs(), layer.weight.abs(), bias, layer.stride, layer.padding, groups=layer.groups)
    assert ((program.module()(x) - layer(x)).abs() <= 2 * width * 2**-24 * terms).all()


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"kernel_size": 3, "padding": 1}, 2),
        ({"kernel_size": (3, 3, 2), "stride": (2, 2, 1), "padding": (0, 1, 0), "bias": False}, 2),
        ({"kernel_size": (1, 3, 3), "padding": (2, 0, 1)}, 2),
        ({"kernel_size": (2, 1, 1)}, 2),
        ({"kernel_size": 3, "dilation": 2, "padding": 2}, 0),
        ({"kernel_size": 3, "groups": 2}, 0),
    ],
)
def test_convolutions_over_three_axes_go_over_frames_side_by_side(options: dict[str, Any], count: int) -> None:
    """One weight, called twice: on a video and on its mirror image, which lies otherwise in memory."""
    torch.manual_seed(0)
    layer, x = nn.Conv3d(4, 6, **options), torch.randn(2, 4, 6, 6, 7)
    bias = None if layer.bias is None else layer.bias.abs()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), self.layer(x.transpose(3, 4).contiguous().transpose(3, 4).flip(2))

    program = torch.export.export(Twice(), (x,), strict=False).run_decompositions({})
    assert flatten_convolutions(program) == count
    assert any(node.target is torch.ops.aten.conv3d.default for node in program.graph.nodes) is not bool(count)
    assert all(node.meta["val"].ndim <= 5 for node in program.graph.nodes if hasattr(node.meta.get("val"), "ndim"))
    terms = torch.conv3d(
        x.abs(), layer.weight.abs(), bias, layer.stride, layer.padding, layer.dilation, groups=layer.groups
    )
    mirrored = torch.conv3d(
        x.flip(2).abs(), layer.weight.abs(), bias, layer.stride, layer.padding, layer.dilation, groups=layer.groups
    )
    bound = 2 * layer.weight[0].numel() * 2**-24
    for found, wanted, most in zip(program.module()(x), Twice()(x), (terms, mirrored), strict=True):
        assert ((found - wanted).abs() <= bound * most).all()


# ------------------------------------------------------------------ attention

MASKS = {
    "none": (),
    "keys": (2, 1, 1, 6),
    "queries": (7, 6),
    "heads": (1, 4, 7, 6),
}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(MASKS)), st.sampled_from([4, 2, 1]), st.booleans(), st.sampled_from([None, 1, 3, 7, 100]),
    st.sampled_from([None, 0.3]), st.integers(0, 2**31),
)  # fmt: skip
def test_attention_in_slices(
    mask: str, kv_heads: int, heads: bool, queries: int | None, scale: float | None, seed: int
) -> None:
    """Against softmax written out in float64, and against the whole."""
    random = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, n, s, 5, generator=random) for n, s in ((4, 7), (kv_heads, 6), (kv_heads, 6)))
    bias = torch.randn(MASKS[mask], generator=random) if mask != "none" else None
    inputs = [q, k, v] if bias is None else [q, k, v, bias]
    program = graph_of(inputs, lambda add, nodes: add(ATTENTION, *nodes, scale=scale, enable_gqa=kv_heads != 4))
    whole = program.graph_module(*inputs)
    changed = heads or (queries or 7) < 7
    assert slice_attention(program, heads=heads, queries=queries) == changed
    calls = [each.target for each in program.graph_module.graph.nodes].count(ATTENTION)
    assert calls == (4 if heads else 1) * -(-7 // min(queries or 7, 7))
    found = program.graph_module(*inputs)
    wide_k, wide_v = (each.double().repeat_interleave(4 // kv_heads, 1) for each in (k, v))
    scores = q.double() @ wide_k.mT * (scale or 5**-0.5) + (0 if bias is None else bias.double())
    assert (found - scores.softmax(-1) @ wide_v).abs().max() <= 3e-6 * v.abs().max()
    assert (found - whole).abs().max() <= 1e-6 * v.abs().max()


def test_a_causal_attention_keeps_its_queries_together() -> None:
    q = torch.randn(1, 2, 6, 4)
    program = graph_of([q], lambda add, nodes: add(ATTENTION, *nodes * 3, is_causal=True))
    whole = program.graph_module(q)
    assert slice_attention(program, queries=2) == 0
    assert slice_attention(program, heads=True, queries=2) == 1
    assert (program.graph_module(q) - whole).abs().max() <= 1e-6 * q.abs().max()


# ------------------------------------------------------------------ whole models


@cache
def step_of(name: str) -> Component:
    """A DiT step of one block, text half padded; traced once for all tests."""
    denoiser = tiny_denoiser(name)
    shorten(denoiser)
    seeded(denoiser.module)
    torch.manual_seed(1)
    latent, _, cond = denoiser.example(1, SIZE)
    return dit_step(denoiser.eval(), latent, dict(cond))


@pytest.mark.parametrize("name", MODELS)
def test_real_models_compute_the_same(name: str) -> None:
    """One rewrite after the other: few axes bit for bit, the others to 1e-5 of the output's peak."""
    use()
    component = step_of(name)
    program, inputs = copied(component.program), component.inputs
    with torch.no_grad():
        plain = program.module()(**inputs)
        tall = sum(rank > 5 for rank in ranks(program))
        assert (tall > 0) == (name != "video_dit")
        assert lower_ranks(program, 5) == tall
        assert max(ranks(program)) <= 5
        assert torch.equal(program.module()(**inputs), plain)
        linears = [node.target for node in program.graph.nodes].count(aten.linear.default)
        assert linears_as_convolutions(program) == linears > 10
        convolved = program.module()(**inputs)
        assert (convolved - plain).abs().max() <= 1e-5 * plain.abs().max()
        assert slice_attention(program, heads=True, queries=5) == 2
        sliced = program.module()(**inputs)
        assert (sliced - convolved).abs().max() <= 1e-5 * plain.abs().max()
    assert plain.std() > 1e-3, "a flat output would prove nothing"


def test_a_profile_asks_and_the_proof_passes(tmp_path: Path) -> None:
    """Wan goes through rank 8: ONNX for a device of rank 5 with convolutions and sliced attention."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    use()
    component, exporter = step_of("wan"), ONNXExport(ONNXOptions())
    profile = Profile(
        "engine", precision="float32", max_rank=5, convolutions=True, split_heads=True, query_slice=16,
        input_sets=("typical", "zero"),
    )  # fmt: skip
    refused = [each.message for each in exporter.check(component, profile) if each.severity == "error"]
    assert "a tensor of rank 8, the target takes 5" in refused
    assert check_components(exporter, [component], profile) == []
    report = export_components(exporter, [component], profile, tmp_path / "out")
    assert report["passed"], report["rows"]
    assert min(row["psnr_db"] for row in report["rows"]) > 100
    model = onnx.shape_inference.infer_shapes(onnx.load(str(tmp_path / "out" / "dit_step.onnx")))
    assert max(len(each.type.tensor_type.shape.dim) for each in model.graph.value_info) <= 5
    weights = {each.name for each in model.graph.initializer if len(each.dims) == 2}
    products = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul") and weights & set(node.input)]
    assert products == []
    kernels = [each for each in model.graph.initializer if len(each.dims) == 4 and each.dims[2:] == [1, 1]]
    assert len(kernels) > 10


def test_what_is_not_asked_for_is_the_same_component() -> None:
    plain = Component("linear", nn.Linear(4, 4).eval(), {"x": torch.ones(2, 4)}, ("y",), varied=("x",))
    assert plain.fitted(Profile("any", max_rank=4)) is plain
    changed = plain.fitted(Profile("any", max_rank=4, convolutions=True))
    assert changed.rewrites.convolutions
    assert plain.fitted(Profile("other", max_rank=4, convolutions=True)) is changed
