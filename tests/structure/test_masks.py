"""Masks multiply what they name: units that lie scattered, one draw per sample, on three different DiTs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dit_compress.structure.compact import block_axis
from dit_compress.structure.facts import Axis, MaskPoint, Stack, everything
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress_plugins.granularity_ffn.axes import ffn_axis
from dit_compress_plugins.granularity_head.axes import head_axis

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Cond, Denoiser

SCATTERED = np.array([[0, 3], [1, 2]])
"""Unit 0 owns features 0 and 3, unit 1 owns 1 and 2."""


class Double(nn.Module):
    """A block: x → 2x, alone or in a tuple."""

    def __init__(self, *, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, x: Tensor) -> Tensor | tuple[str, Tensor]:
        return ("text", 2 * x) if self.in_tuple else 2 * x


def toy() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.init.eye_(module[0].weight)
    return module


def point_axis(side: str) -> Axis:
    return Axis("head:0", "head", 2, "", masks=(MaskPoint("0", side, SCATTERED),))


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_unit_scales_its_own_features(side: str) -> None:
    module, x = toy(), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    with masked(module, [point_axis(side)], {"head:0": torch.tensor([0.5, 10.0])}):
        assert module(x).tolist() == [[0.5, 20.0, 30.0, 2.0]]
    assert module(x).tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_a_mask_per_sample() -> None:
    module, x = toy(), torch.ones(2, 3, 4)
    with masked(module, [point_axis("output")], {"head:0": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}):
        found = module(x)
    assert found[0].tolist() == [[1.0, 0.0, 0.0, 1.0]] * 3
    assert found[1].tolist() == [[0.0, 1.0, 1.0, 0.0]] * 3


@pytest.mark.parametrize("in_tuple", [False, True])
def test_a_block_is_mixed_with_its_input(in_tuple: bool) -> None:
    """y = m·2x + (1 - m)·x: 2x at 1, x at 0, 1.25x at a quarter; one draw per sample."""
    stack = Stack("blocks", 1, stream=0, output=1 if in_tuple else None)
    module = nn.ModuleDict({"blocks": nn.ModuleList([Double(in_tuple=in_tuple)])})
    x = torch.ones(3, 2, 1)
    with masked(module, [block_axis(stack)], {"block:blocks": torch.tensor([[1.0], [0.0], [0.25]])}):
        found = module["blocks"][0](x)
    stream = found[1] if in_tuple else found
    assert stream[:, 0, 0].tolist() == [2.0, 1.0, 1.25]
    assert not in_tuple or found[0] == "text"


def test_the_gradient_of_a_mask_is_what_the_unit_contributes() -> None:
    """Output features summed: unit 0 gives 1 + 5, unit 1 gives 2 + 3, times its mask."""
    module, x = toy(), torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    mask = torch.tensor([1.0, 1.0], requires_grad=True)
    with masked(module, [point_axis("output")], {"head:0": mask}):
        module(x).sum().backward()
    assert mask.grad is not None
    assert mask.grad.tolist() == [6.0, 5.0]


def test_masks_go_when_the_context_closes_on_an_error_too() -> None:
    module, x = toy(), torch.ones(1, 4)

    def fail() -> None:
        with masked(module, [point_axis("output")], {"head:0": torch.zeros(2)}):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert module(x).tolist() == [[1.0] * 4]


def test_a_plan_as_masks() -> None:
    axes = [point_axis("output"), Axis("ffn:1", "ffn", 3, "")]
    values = hard_masks(axes, {"head:0": (1,)}, torch.zeros(1))
    assert {name: value.tolist() for name, value in values.items()} == {"head:0": [0.0, 1.0]}
    assert hard_masks(axes, everything(axes), torch.zeros(1))["ffn:1"].tolist() == [1.0, 1.0, 1.0]


def all_axes(denoiser: Denoiser) -> list[Axis]:
    structure = denoiser.structure()
    heads = [head_axis(attention) for attention in structure.attentions]
    return [block_axis(structure.main), *heads, *map(ffn_axis, structure.feed_forwards)]


def example(denoiser: Denoiser) -> tuple[Tensor, Tensor, Cond]:
    torch.manual_seed(3)
    return denoiser.example(2, denoiser.example_size)


@pytest.mark.parametrize("name", MODELS)
def test_masks_of_one_change_nothing(name: str) -> None:
    denoiser = tiny_denoiser(name)
    axes, given = all_axes(denoiser), example(denoiser)
    with torch.no_grad():
        whole = denoiser(*given)
        with masked(denoiser.module, axes, {axis.name: torch.ones(2, axis.units) for axis in axes}):
            torch.testing.assert_close(denoiser(*given), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_draw_per_sample_masks_each_sample_alone(name: str) -> None:
    denoiser = tiny_denoiser(name)
    axes, given = all_axes(denoiser), example(denoiser)
    torch.manual_seed(4)
    values = {axis.name: (torch.rand(2, axis.units) > 0.3).float() for axis in axes}
    with torch.no_grad():
        with masked(denoiser.module, axes, values):
            together = denoiser(*given)
        with masked(denoiser.module, axes, {key: value[1] for key, value in values.items()}):
            alone = denoiser(*given)
        whole = denoiser(*given)
    torch.testing.assert_close(together[1], alone[1], rtol=0, atol=2e-6)
    assert float((together[1] - whole[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_every_unit_of_every_axis_gets_a_gradient(name: str) -> None:
    denoiser = tiny_denoiser(name)
    axes = all_axes(denoiser)
    values = {axis.name: torch.ones(axis.units, requires_grad=True) for axis in axes}
    with masked(denoiser.module, axes, values):
        denoiser(*example(denoiser)).square().sum().backward()
    for axis in axes:
        gradient = values[axis.name].grad
        assert gradient is not None
        assert int((gradient != 0).sum()) == axis.units, axis.name
