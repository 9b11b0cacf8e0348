"""Every rewrite computes the same: the bounds stated in ``dit_compress.export.rewrite``."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dit_compress.core.errors import UserError
from dit_compress.export.rewrite import MASKED, ScaledRMSNorm, rewrite_graph, rewrite_modules
from dit_compress_plugins.model_video_dit.layers import RMSNorm as ProjectRMSNorm

WIDTH = 48
BOUND = 1e-6


def rows(width: int = WIDTH) -> Tensor:
    """Typical rows, ×300, ×1e-3, ×1e-6 and zero rows."""
    torch.manual_seed(0)
    typical = torch.randn(5, width)
    return torch.stack([typical, typical * 300, typical * 1e-3, typical * 1e-6, typical * 0])


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
        assert difference <= BOUND * wanted[group].abs().max() + 1e-12, group


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


def test_copy_shares_weights_and_leaves_the_original_alone() -> None:
    original = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.RMSNorm(WIDTH))
    changed = rewrite_modules(original)
    assert isinstance(original[1], nn.RMSNorm)
    assert isinstance(changed[1], ScaledRMSNorm)
    assert changed[0].weight.data_ptr() == original[0].weight.data_ptr()
    assert changed[1].weight.data_ptr() == original[1].weight.data_ptr()


def test_something_else_called_rms_norm_is_refused_by_path() -> None:
    class OddRMSNorm(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    with pytest.raises(UserError, match=r"1: OddRMSNorm is not RMSNorm"):
        rewrite_modules(nn.Sequential(nn.Identity(), OddRMSNorm(8)))


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
