"""Every rewrite computes the same: the bounds stated in ``dit_compress.export.rewrite``."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.t5.modeling_t5 import T5LayerNorm

from dit_compress.export.component import Component
from dit_compress.export.inspection import inspect
from dit_compress.export.rewrite import MASKED, ScaledRMSNorm, rewrite_graph, rewrite_modules
from dit_compress.export.types import Profile
from dit_compress_plugins.model_video_dit.layers import RMSNorm as ProjectRMSNorm

WIDTH = 48
BOUND = 1e-6


def rows(width: int = WIDTH) -> Tensor:
    """Typical rows, ×300, ×1e-3, ×1e-6 and zero rows."""
    torch.manual_seed(0)
    typical = torch.randn(5, width)
    return torch.stack([typical, typical * 300, typical * 1e-3, typical * 1e-6, typical * 0])


class Named(nn.Module):
    """As repositories write it: one parameter, of whatever name, and the arithmetic in single precision."""

    def __init__(self, name: str, start: float = 0.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.name, self.start, self.epsilon = name, start, eps
        self.register_parameter(name, nn.Parameter(torch.ones(WIDTH)))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.epsilon)
        return (y * (self.start + getattr(self, self.name).float())).type_as(x)


class Fixed(Named):
    """The epsilon is in the code alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + 3e-5) * getattr(self, self.name)


class Outside(Named):
    """The epsilon beside the root."""

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(2, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return x / (norm + self.epsilon) * getattr(self, self.name)


class Normalised(Named):
    """By ``F.normalize``, and the width in the gain."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1) * WIDTH**0.5 * (getattr(self, self.name) + 1)


class Bare(nn.Module):
    """No parameter, no name that says what it is."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * (hidden_states.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()


def norms() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    made = {
        "torch": nn.RMSNorm(WIDTH, eps=1e-6),
        "torch without eps": nn.RMSNorm(WIDTH),
        "torch without weight": nn.RMSNorm(WIDTH, eps=1e-5, elementwise_affine=False),
        "diffusers": DiffusersRMSNorm(WIDTH, eps=1e-6),
        "diffusers with bias": DiffusersRMSNorm(WIDTH, eps=1e-6, bias=True),
        "project": ProjectRMSNorm(WIDTH),
        "project without weight": ProjectRMSNorm(WIDTH, affine=False),
        "scale": Named("scale"),
        "gamma, another epsilon": Named("gamma", eps=1e-3),
        "1 + weight": Named("weight", start=1.0),
        "epsilon in the code": Fixed("g"),
        "epsilon outside": Outside("scale", eps=1e-8),
        "epsilon outside, large": Outside("scale", eps=1e-5),
        "normalize": Normalised("gamma"),
        "bare": Bare(),
        "T5": T5LayerNorm(WIDTH),
    }
    for module in made.values():
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("name", norms())
def test_rms_norm_is_the_same(name: str) -> None:
    original, x = norms()[name], rows()
    changed = rewrite_modules(original)
    assert isinstance(changed, ScaledRMSNorm)
    with torch.no_grad():
        wanted, found = original(x), changed(x)
    for group in range(len(x)):
        difference = (wanted[group] - found[group]).abs().max()
        # normalize has its epsilon of 1e-12 as a floor, ours is added: 1e-6 of rows × 1e-6
        bound = 2 * BOUND if name == "normalize" else BOUND
        assert difference <= bound * wanted[group].abs().max() + 1e-12, group


@pytest.mark.parametrize("factor", [1.0, 300.0, 1e4, 1e-3, 0.0])
def test_rms_norm_survives_half_precision(factor: float) -> None:
    """The plain form squares and overflows above 256."""
    x = rows()[0] * factor
    wanted = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6)
    found = ScaledRMSNorm(1e-6).half()(x.half())
    assert torch.isfinite(found).all()
    assert (found.double() - wanted).abs().max() <= 4e-3 * max(float(wanted.abs().max()), 1.0)
    if factor == 300.0:
        plain = x.half() * torch.rsqrt((x.half() * x.half()).mean(-1, keepdim=True) + 1e-6)
        assert (plain == 0).all()


def test_a_row_of_zeros_is_zero_in_half_precision_where_the_epsilon_is_lost() -> None:
    norm = ScaledRMSNorm(1e-12, outside=True).half()
    assert norm.root_eps == 0
    assert norm(torch.zeros(2, 8).half()).tolist() == torch.zeros(2, 8).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    changed = rewrite_modules(Named("scale", start=1.0).to(dtype))
    assert isinstance(changed, ScaledRMSNorm)
    assert changed.weight is not None
    assert changed.weight.dtype == dtype


def test_norms_without_values_are_the_same_norms() -> None:
    for name, norm in norms().items():
        changed = rewrite_modules(norm.to("meta"))
        assert isinstance(changed, ScaledRMSNorm), name
        assert all(value.is_meta for key, value in changed.named_buffers() if key != "root_eps")


def test_a_shared_norm_is_replaced_wherever_it_stands() -> None:
    norm = Named("scale")
    changed = rewrite_modules(nn.Sequential(norm, nn.ReLU(), norm))
    assert isinstance(changed[0], ScaledRMSNorm)
    assert changed[0] is changed[2]
    assert changed[0].weight is not None
    assert changed[0].weight.data_ptr() == norm.scale.data_ptr()


class OddRMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Conditioned(Named):
    """Its second input changes what it computes."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(x) if shift is None else super().forward(x) + shift


class Channels(Named):
    """Over the first axis behind the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1) * getattr(self, self.name)


class Widths(nn.Module):
    """What it multiplies with depends on a width that nothing states."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1) * 24**0.5


class Raises(Named):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError(x.shape)


OTHERS = {
    "layer norm": nn.LayerNorm(WIDTH),
    "without bias": nn.LayerNorm(WIDTH, bias=False),
    "batch norm": nn.BatchNorm1d(5),
    "group norm": nn.GroupNorm(1, 5),
    "activation": nn.GELU(),
    "prelu": nn.PReLU(WIDTH),
    "identity": nn.Identity(),
    "odd": OddRMSNorm(8),
    "conditioned": Conditioned("scale"),
    "channels": Channels("scale"),
    "width in the code": Widths(),
    "raises": Raises("scale"),
    "linear": nn.Linear(WIDTH, WIDTH),
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_stays(name: str) -> None:
    assert type(rewrite_modules(OTHERS[name])) is type(OTHERS[name])


def test_copy_shares_weights_and_leaves_the_original_alone() -> None:
    original = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.RMSNorm(WIDTH))
    changed = rewrite_modules(original)
    assert isinstance(original[1], nn.RMSNorm)
    assert isinstance(changed[1], ScaledRMSNorm)
    assert changed[0].weight.data_ptr() == original[0].weight.data_ptr()
    assert changed[1].weight.data_ptr() == original[1].weight.data_ptr()


def test_something_else_called_rms_norm_stays_and_check_names_it() -> None:
    module = nn.Sequential(nn.Linear(8, 8), OddRMSNorm(8))
    x = torch.randn(2, 3, 8)
    assert torch.equal(rewrite_modules(module)(x), module(x))
    component = Component("net", module, {"x": x}, ("y",), ("x",))
    (said,) = inspect(component, Profile("half"))
    assert (said.path, said.severity) == ("1", "warning")
    assert said.message.startswith("OddRMSNorm is not x / sqrt(mean(x²) + eps) · weight over the last axis")
    assert inspect(component, Profile("single", precision="float32")) == []


class Masked(nn.Module):
    """An attention whose mask is made of the given number; or a boolean mask."""

    def __init__(self, number: float | None, scale: float | None = None) -> None:
        super().__init__()
        self.number, self.scale = number, scale

    def forward(self, x_BNSK: Tensor, mask_BL: Tensor) -> Tensor:
        keep = mask_BL[:, None, None, :] > 0.5
        if self.number is None:
            return scaled_dot_product_attention(x_BNSK, x_BNSK, x_BNSK, attn_mask=keep, scale=self.scale)
        if math.isinf(self.number):
            bias = torch.zeros_like(keep, dtype=x_BNSK.dtype).masked_fill(~keep, self.number)
        else:
            bias = (1 - keep.to(x_BNSK.dtype)) * self.number
        return scaled_dot_product_attention(x_BNSK, x_BNSK, x_BNSK, attn_mask=bias, scale=self.scale)


@pytest.mark.parametrize("number", [None, -math.inf, -1e4, torch.finfo(torch.float32).min])
def test_masks_become_finite_and_additive(number: float | None) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 2, 6, 4), torch.tensor([[1.0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    module = Masked(number)
    program = torch.export.export(module, (x, mask), strict=False).run_decompositions({})
    found = rewrite_graph(program)
    assert (found.boolean_masks, found.numbers) == ((1, 0) if number is None else (0, 1))
    numbers = [value for node in program.graph.nodes for value in node.args if isinstance(value, float)]
    assert MASKED in numbers
    assert min(numbers) == MASKED
    torch.testing.assert_close(program.module()(x, mask), module(x, mask), atol=BOUND, rtol=0)


@pytest.mark.parametrize(("scale", "dropped"), [(0.5, 1), (0.3, 0), (None, 0)])
def test_default_scale_is_dropped(scale: float | None, dropped: int) -> None:
    x, mask = torch.randn(2, 2, 6, 4), torch.ones(2, 6)
    module = Masked(None, scale)
    program = torch.export.export(module, (x, mask), strict=False).run_decompositions({})
    assert rewrite_graph(program).scales == dropped
    torch.testing.assert_close(program.module()(x, mask), module(x, mask), atol=BOUND, rtol=0)


@pytest.mark.parametrize(("like", "fills"), [(torch.float32, 0), (torch.bool, 3), (torch.int64, 3)])
def test_constants_like_another_tensor_keep_their_dtype(like: torch.dtype, fills: int) -> None:
    class Filled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ones = torch.ones_like(x, dtype=torch.float32)
            halves = torch.full_like(x, 0.5, dtype=torch.float32)
            return torch.zeros_like(x, dtype=torch.float32).masked_fill(x > 0, -2.0) + ones * halves

    x = torch.tensor([[1, 0, 1]]).to(like)
    program = torch.export.export(Filled(), (x,), strict=False).run_decompositions({})
    assert rewrite_graph(program).fills == fills
    assert program.module()(x).tolist() == Filled()(x).tolist() == [[-1.5, 0.5, -1.5]]


def test_reciprocals_become_divisions() -> None:
    class Inverse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1.0 / x + x.reciprocal()

    x = torch.tensor([3.0, -0.007, 1e-4, 250.0])
    program = torch.export.export(Inverse(), (x,), strict=False).run_decompositions({})
    assert rewrite_graph(program).reciprocals == 2
    assert torch.equal(program.module()(x), Inverse()(x))


def test_einsums_that_order_axes_are_permutations_and_products_are_added() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            ordered = torch.einsum("nhw pqc -> nchpwq", x)
            summed = torch.einsum("nhwpqc,c->nhwpq", x, y).sum()
            return torch.addcmul(ordered.flatten(), y.sum(), ordered.flatten(), value=0.5) + summed

    x, y = torch.randn(1, 2, 3, 2, 2, 5, dtype=torch.float64), torch.arange(5, dtype=torch.float64)
    program = torch.export.export(Both(), (x, y), strict=False).run_decompositions({})
    counts = rewrite_graph(program)
    assert (counts.orders, counts.products) == (1, 1)
    assert sum("einsum" in str(node.target) for node in program.graph.nodes) == 1, "a contraction stays"
    ordered = x.permute(0, 5, 1, 3, 2, 4).flatten()
    expected = ordered + 0.5 * (10 * ordered) + (x * y).sum()
    assert torch.allclose(program.module()(x, y), expected, rtol=1e-12)


def test_empty_tensors_are_zeros() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.empty_like(x)
            out[..., 0::2] = -x[..., 1::2]
            out[..., 1::2] = x[..., 0::2]
            return out

    x = torch.randn(2, 6)
    program = torch.export.export(Turned(), (x,), strict=False).run_decompositions({})
    assert rewrite_graph(program).empties == 1
    assert not any("empty" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), torch.stack((-x[:, 1::2], x[:, 0::2]), dim=-1).flatten(1))


def test_aliases_go_and_an_output_keeps_its_name() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.alias.default(torch.ops.aten.alias.default(x) + 1.0)

    x = torch.randn(2, 3)
    program = torch.export.export(Named(), (x,), strict=False).run_decompositions({})
    assert rewrite_graph(program).aliases == 2
    assert not any("alias" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), x + 1.0)
