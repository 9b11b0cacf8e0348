"""A short healing: it goes on exactly where it ended, trains what it should, and is measured on the same grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from planted import latents_in, planted, problem_of

from dit_compress.measure.quality import data_grid
from dit_compress.measure.recovery import Recovery
from dit_compress.model import flow
from dit_compress.model.cut import compact, pruned_copy
from dit_compress.structure.facts import Kept
from dit_compress.train.healing import FlowMatching, Healing
from dit_compress.train.loop import draw_batch
from dit_compress.train.options import TrainOptions


@pytest.fixture(scope="module")
def recovery(tmp_path_factory: pytest.TempPathFactory) -> Recovery:
    """A planted model, to be pruned and healed on latents that are noise."""
    denoiser, context = planted(), latents_in(tmp_path_factory.mktemp("healing"))
    text = context.text().requires_grad_(requires_grad=False)
    samples = context.latents("train", text)
    options = TrainOptions(steps=3, batch=4, lr=1e-3, warmup=0)
    grid = data_grid(samples, text, context.input.flow, 8)
    return Recovery(denoiser, problem_of(denoiser).axes, grid, samples, text, options, context)


def half(recovery: Recovery) -> Kept:
    keep = problem_of(recovery.denoiser).keep
    return {name: tuple(range(count)) for name, count in keep.items()}


def weights(healing: Healing) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in healing.student.module.named_parameters()}


def test_an_unproven_copy_is_the_pruned_model(recovery: Recovery) -> None:
    kept = half(recovery)
    proven = planted()
    compact(proven, recovery.axes, kept)
    copied = pruned_copy(recovery.denoiser, recovery.axes, kept)
    assert recovery.grid.loss(copied) == recovery.grid.loss(proven)
    shared = {value.data_ptr() for value in recovery.denoiser.parameters()}
    assert not shared & {value.data_ptr() for value in copied.parameters()}


def test_more_steps_are_just_more(recovery: Recovery) -> None:
    """Two and then two are four: weights, optimisers and batches go on. The model it came from is as it was."""
    before, kept = recovery.grid.loss(recovery.denoiser), half(recovery)
    once, twice = recovery.begin(kept), recovery.begin(kept)
    once.advance(4)
    twice.advance(2)
    twice.advance(2)
    assert all(torch.equal(value, weights(twice)[name]) for name, value in weights(once).items())
    assert recovery.grid.loss(recovery.denoiser) == before


def test_a_point_is_the_loss_after_the_steps(recovery: Recovery) -> None:
    kept = half(recovery)
    by_hand = recovery.begin(kept)
    at_once = recovery.grid.loss(by_hand.student)
    by_hand.advance(3)
    assert recovery.loss(kept) == recovery.grid.loss(by_hand.student) < at_once


def test_lora_trains_and_the_weights_stay(recovery: Recovery) -> None:
    healing = replace(recovery, rank=2).begin(half(recovery))
    before = weights(healing)
    healing.advance(1)
    moved = {name for name, value in weights(healing).items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".lora_" in name for name in moved)
    inside = [name for name in before if ".lora_A" in name]
    assert {before[name].shape[0] for name in inside} == {2}
    assert all(name.startswith("transformer_blocks.") for name in inside)


def test_the_loss_by_hand(recovery: Recovery) -> None:
    """Velocity of the data, at noise levels that the schedule warps, no caption dropped."""
    context, text = recovery.context, recovery.text
    batch = draw_batch(recovery.samples, 4, 0, 0)
    sigma = context.input.flow.warp(batch.streams.uniform("sigma"))
    noise = batch.streams.normal("noise", batch.x0.shape[1:])
    with torch.no_grad():
        found = recovery.denoiser(flow.interpolate(batch.x0, noise, sigma), sigma, text(batch.tokens))
        objective = FlowMatching(recovery.denoiser, text, context.input.flow)
        loss = objective.loss(objective.phases[0], batch)["loss"]
    assert float(loss) == pytest.approx(float((found - (noise - batch.x0)).square().mean()), rel=1e-6)
