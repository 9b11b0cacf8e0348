"""Masked equals compact, for every level and all three together, on three different DiTs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_compress.model.cut import compact, example_output, masked_output, truncated
from dit_compress.model.denoiser import Denoiser
from dit_compress.structure.apply import apply_edits, edit_state
from dit_compress.structure.compact import CompactionError, kept_blocks, relative_error
from dit_compress.structure.edits import compile_edits, edits_as_data, edits_from_data
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress_plugins.granularity_block import BlockOptions
from dit_compress_plugins.granularity_block.axes import BlockGranularity
from dit_compress_plugins.granularity_ffn import FfnOptions
from dit_compress_plugins.granularity_ffn.axes import FfnGranularity
from dit_compress_plugins.granularity_head import HeadOptions
from dit_compress_plugins.granularity_head.axes import HeadGranularity

LEVELS = {
    "block": BlockGranularity(BlockOptions()),
    "head": HeadGranularity(HeadOptions()),
    "ffn": FfnGranularity(FfnOptions()),
}


def axes_of(denoiser: Denoiser, *levels: str):
    structure = denoiser.structure()
    return [axis for level in levels for axis in LEVELS[level].axes(structure)]


def odd_plan(axes):
    """Removes the first unit of every axis, and of wide axes every third one more."""
    return {axis.name: tuple(u for u in range(axis.units) if u != 0 and (axis.units < 6 or u % 3)) for axis in axes}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("levels", [("block",), ("head",), ("ffn",), ("block", "head", "ffn")], ids="+".join)
def test_masked_equals_compact(name: str, levels: tuple[str, ...]) -> None:
    denoiser = tiny_denoiser(name)
    axes = axes_of(denoiser, *levels)
    kept = odd_plan(axes)
    whole, masked = example_output(denoiser), masked_output(denoiser, axes, kept)
    assert relative_error(masked, whole) > 1e-3, "the plan must change the output, or the test proves nothing"
    before = sum(p.numel() for p in denoiser.parameters())
    compact(denoiser, axes, kept)
    assert sum(p.numel() for p in denoiser.parameters()) < before
    assert relative_error(example_output(denoiser), masked) < 3e-6


@pytest.mark.parametrize("name", MODELS)
def test_structure_is_what_the_config_says(name: str) -> None:
    structure = tiny_denoiser(name).structure()
    assert structure.main.length == 3
    assert [attention.heads for attention in structure.attentions] == [4] * 6
    assert len({feed_forward.width for feed_forward in structure.feed_forwards}) == 1
    assert len(structure.feed_forwards) == 3
    assert structure.refusals == ()


@pytest.mark.parametrize("name", MODELS)
def test_pruned_twice(name: str) -> None:
    denoiser = tiny_denoiser(name)
    log = []
    for _ in range(2):
        axes = axes_of(denoiser, "block", "head", "ffn")
        kept = {axis.name: tuple(range(1, axis.units)) for axis in axes}
        log.append(compact(denoiser, axes, kept))
    structure = denoiser.structure()
    assert (structure.main.length, structure.attentions[0].heads) == (1, 2)
    assert kept_blocks(log, structure.main.path) == (2,)


@pytest.mark.parametrize("name", MODELS)
def test_log_replayed_and_state_edited_give_the_same_model(name: str) -> None:
    denoiser, again = tiny_denoiser(name), tiny_denoiser(name)
    state = {key: value.clone() for key, value in denoiser.module.state_dict().items()}
    axes = axes_of(denoiser, "block", "head", "ffn")
    entry = compact(denoiser, axes, odd_plan(axes))
    edits = edits_from_data(entry["data"]["edits"])
    assert edits_as_data(edits) == entry["data"]["edits"]
    apply_edits(again.module, edits)
    edited = edit_state(state, edits)
    expected = denoiser.module.state_dict()
    assert edited.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(edited[key], value, rtol=0, atol=0)
    again.forget_structure()
    assert torch.equal(example_output(again), example_output(denoiser))


def test_a_stale_head_count_is_caught() -> None:
    denoiser = tiny_denoiser("ltx")
    axes = axes_of(denoiser, "head")
    object.__setattr__(axes[0], "follows", ())
    with pytest.raises((CompactionError, RuntimeError)):
        compact(denoiser, axes, odd_plan(axes))


def test_an_unscaled_norm_is_caught() -> None:
    denoiser = tiny_denoiser("wan")
    axes = axes_of(denoiser, "head")
    for axis in axes:
        object.__setattr__(axis, "across", ())
    with pytest.raises(CompactionError):
        compact(denoiser, axes, odd_plan(axes))


@pytest.mark.parametrize("bad", [{"head:nowhere": (0,)}, {"block:blocks": ()}, {"block:blocks": (0, 9)}])
def test_a_plan_for_another_model_is_refused(bad) -> None:
    denoiser = tiny_denoiser("wan")
    with pytest.raises(ValueError, match="plan"):
        compile_edits(denoiser.module, axes_of(denoiser, "block"), bad)


@pytest.mark.parametrize("name", MODELS)
def test_truncated_gives_the_features_of_the_whole(name: str) -> None:
    denoiser = tiny_denoiser(name)
    torch.manual_seed(1)
    example = denoiser.example(2, denoiser.example_size)
    with torch.no_grad():
        _, whole = denoiser.features(*example, at=[0, 1])
        _, short = truncated(denoiser, 2).features(*example, at=[1])
    assert torch.equal(whole[1], short[1])
    assert denoiser.structure().main.length == 3


@settings(max_examples=15, deadline=None)
@given(data=st.data(), name=st.sampled_from(MODELS))
def test_any_plan_is_exact(data: st.DataObject, name: str) -> None:
    denoiser = tiny_denoiser(name)
    axes = axes_of(denoiser, "block", "head", "ffn")
    kept = {
        axis.name: tuple(sorted(data.draw(st.sets(st.integers(0, axis.units - 1), min_size=1), label=axis.name)))
        for axis in axes
    }
    compact(denoiser, axes, kept)
