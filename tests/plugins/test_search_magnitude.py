"""Magnitude: norms by hand, planted small units, ties."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.importance import magnitude, top, unit_norms
from dit_compress.search.problem import SearchProblem
from dit_compress.structure.compact import block_axis
from dit_compress.structure.facts import Stack
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress_plugins.granularity_ffn.axes import ffn_axis
from dit_compress_plugins.granularity_head.axes import head_axis


def test_the_norm_of_a_unit_by_hand() -> None:
    """Rows (3, 4) and (0, 0): norm 5; rows (6, 0) and (0, 8): 10."""
    weight = torch.tensor([[3.0, 4.0], [6.0, 0.0], [0.0, 0.0], [0.0, 8.0]])
    assert unit_norms(weight, 0, torch.tensor([[0, 2], [1, 3]])).tolist() == [5.0, 10.0]
    assert unit_norms(weight.T, 1, torch.tensor([[0, 2], [1, 3]])).tolist() == [5.0, 10.0]


def test_the_best_units_ascend_and_ties_go_to_the_first() -> None:
    assert top(torch.tensor([0.5, 2.0, 1.0, 2.0]), 2) == (1, 3)
    assert top(torch.tensor([1.0, 1.0, 1.0]), 2) == (0, 1)


def test_every_tensor_counts_alike() -> None:
    """A tensor a thousand times larger does not drown the others: scores are relative to its own mean."""
    denoiser = tiny_denoiser("video_dit")
    axis = head_axis(denoiser.structure().attentions[0])
    before = magnitude(denoiser.module, axis)
    with torch.no_grad():
        denoiser.module.get_parameter(axis.members[-1].tensor).mul_(1000)
    torch.testing.assert_close(magnitude(denoiser.module, axis), before)
    assert float(before.detach().mean()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_planted_small_units_go(name: str) -> None:
    """Block 1, head 2 of every attention and channel 5 of every feed-forward are a tenth of the others."""
    denoiser = tiny_denoiser(name)
    structure = denoiser.structure()
    heads, channels = map(head_axis, structure.attentions), map(ffn_axis, structure.feed_forwards)
    axes = (block_axis(structure.main), *heads, *channels)
    planted = {"block": 1, "head": 2, "ffn": 5}
    with torch.no_grad():
        for axis in axes[1:]:
            for member in axis.members:
                if member.tensor.endswith("weight") and "norm" not in member.tensor:
                    tensor = denoiser.module.get_parameter(member.tensor)
                    tensor[(slice(None),) * member.dim + (member.indices[planted[axis.level]],)] *= 0.1
        for parameter in denoiser.module.get_submodule(structure.main.block(1)).parameters():
            parameter.mul_(0.1)
    problem = SearchProblem(denoiser, axes, {axis.name: axis.units - 1 for axis in axes})
    context: Any = SimpleNamespace(seed=0)
    selection = make_part("search", "magnitude", installed()).build().search(problem, context)
    gone = {axis.level: set(range(axis.units)) - set(selection.kept[axis.name]) for axis in axes}
    assert gone == {level: {unit} for level, unit in planted.items()}
    assert [len(scores) for scores in selection.history["scores"].values()] == [axis.units for axis in axes]


def test_blocks_need_not_have_the_same_matrices() -> None:
    """SD3's last block lacks some. Norms 1, 3 of ``a`` and 2, 6, 4 of ``b``: means 2 and 4."""
    blocks = [nn.Module() for _ in range(3)]
    for block, name, norm in ((0, "a", 1.0), (1, "a", 3.0), (0, "b", 2.0), (1, "b", 6.0), (2, "b", 4.0)):
        setattr(blocks[block], name, nn.Parameter(torch.full((1, 1), norm)))
    module = nn.Module()
    module.blocks = nn.ModuleList(blocks)
    scores = magnitude(module, block_axis(Stack("blocks", 3, 0, None)))
    assert scores.tolist() == [0.5, 1.5, 1.0]
