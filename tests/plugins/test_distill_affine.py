"""Affine KD: Eq. 5 and 6 recomputed, block pairs by the log, who gets a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import batch, context_in, part, tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.model.cut import compact
from dit_compress.model.flow import Flow
from dit_compress.structure.compact import block_axis
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.distill import block_pairs, last_of_groups
from dit_compress.train.losses import cosine_distance, flow_loss
from dit_compress_plugins.distill_affine import AffineOptions
from dit_compress_plugins.distill_affine.distiller import AffineObjective, affine_map

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.model.denoiser import Denoiser

PAIRS = [(0, 1), (1, 2)]


def objective(student: Denoiser, teacher: Denoiser, pairs: list[tuple[int, int]], **options: Any) -> AffineObjective:
    options = {"caption_dropout": 0.0, "sigma": "uniform", **options}
    return AffineObjective(AffineOptions(**options), student, teacher, words(), pairs, Flow(3.0))


def drop_blocks(denoiser: Denoiser, *kept: int) -> dict[str, Any]:
    axis = block_axis(denoiser.structure().main)
    return compact(denoiser, [axis], {axis.name: kept})


def test_the_map_begins_as_the_identity() -> None:
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(affine_map(5, 5)(x), x)
    torch.testing.assert_close(affine_map(5, 7)(x), torch.cat([x, torch.zeros(2, 3, 2)], -1))


def test_a_student_equal_to_its_teacher_has_no_feature_loss() -> None:
    made = objective(tiny_denoiser("video_dit"), tiny_denoiser("video_dit"), [(0, 0), (2, 2)])
    assert float(made.loss(made.phases[0], batch(made.text))["feature_loss"].detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["video_dit", "ltx", "wan"])
def test_eq_6_recomputed(name: str) -> None:
    """L_flow + alpha · mean over groups of 1 - cos(A·y_S + b, y_T), both models at the same x and sigma."""
    student, teacher = tiny_denoiser(name, 0), tiny_denoiser(name, 1)
    drop_blocks(student, 1, 2)
    made = objective(student, teacher, PAIRS, alpha=0.25)
    with torch.no_grad():
        for layer in made.aligner:
            layer.bias.normal_()
    given = batch(made.text)
    with torch.no_grad():
        losses = made.loss(made.phases[0], given)
        noise, sigma = given.streams.normal("noise", given.x0.shape[1:]), Flow(3.0).warp(given.streams.uniform("sigma"))
        x, cond = flow.interpolate(given.x0, noise, sigma), made.text(given.tokens)
        output, y_S = student.features(x, sigma, cond, [0, 1])
        _, y_T = teacher.features(x, sigma, cond, [1, 2])
        features = sum(cosine_distance(made.aligner[s](y_S[s]), y_T[t]) for s, t in PAIRS) / 2
        expected = flow_loss(output, noise - given.x0) + 0.25 * features
    assert float(losses["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(losses["feature_loss"]) > 0.01


def test_the_teachers_velocity_is_a_second_target_on_request() -> None:
    student, teacher = tiny_denoiser("video_dit", 0), tiny_denoiser("video_dit", 1)
    made = objective(student, teacher, [(2, 2)], output_weight=2.0)
    losses = made.loss(made.phases[0], batch(made.text))
    parts = losses["flow_loss"] + 0.01 * losses["feature_loss"] + 2 * losses["output_loss"]
    assert float(losses["loss"].detach()) == pytest.approx(float(parts.detach()), rel=1e-6)
    assert float(losses["output_loss"].detach()) > 0


def test_student_and_aligner_get_gradients_teacher_and_text_none() -> None:
    made = objective(tiny_denoiser("video_dit", 0), tiny_denoiser("video_dit", 1), [(0, 0), (2, 2)])
    made.teacher.requires_grad_(requires_grad=False)
    made.loss(made.phases[0], batch(made.text))["loss"].backward()
    for role in ("student", "aligner"):
        assert all(value.grad is not None and value.grad.any() for value in made.roles[role].module.parameters()), role
    for role in ("teacher", "text"):
        assert made.roles[role].lr is None
        assert all(value.grad is None for value in made.roles[role].module.parameters()), role
    assert made.phases[0].updates == ("student", "aligner")


@pytest.mark.parametrize(
    ("count", "groups", "places"), [(4, 2, [1, 3]), (20, 4, [4, 9, 14, 19]), (7, 3, [1, 4, 6]), (2, 4, [0, 1])]
)
def test_the_last_block_of_each_group_is_compared(count: int, groups: int, places: list[int]) -> None:
    pairs = [(index, 100 + index) for index in range(count)]
    assert last_of_groups(pairs, groups) == [pairs[place] for place in places]


def test_every_student_block_is_paired_with_the_one_it_came_from(tmp_path: Path) -> None:
    """Pruned twice: 0 and 2 of 0, 1, 2 stay, then the second of these."""
    student = tiny_denoiser("video_dit")
    stack = student.structure().main.path
    teacher = tiny_bundle(tmp_path / "teacher")
    first = drop_blocks(student, 0, 2)
    once = tiny_bundle(tmp_path / "once", denoiser=student, log=(first,))
    second = drop_blocks(student, 1)
    twice = tiny_bundle(tmp_path / "twice", denoiser=student, log=(first, second))
    assert block_pairs(once, teacher, 2, stack) == [(0, 0), (1, 2)]
    assert block_pairs(twice, teacher, 1, stack) == [(0, 2)]
    assert block_pairs(twice, once, 1, stack) == [(0, 1)]
    assert block_pairs(teacher, None, 3, stack) == [(0, 0), (1, 1), (2, 2)]


def test_a_teacher_that_is_no_ancestor_is_refused(tmp_path: Path) -> None:
    student = tiny_denoiser("video_dit")
    pruned = tiny_bundle(tmp_path / "pruned", log=(drop_blocks(student, 0, 2),), denoiser=student)
    with pytest.raises(UserError, match="the student does not descend from this teacher"):
        block_pairs(tiny_bundle(tmp_path / "whole"), pruned, 3, "transformer_blocks")


def test_no_teacher_is_an_error_with_the_step(tmp_path: Path) -> None:
    context = context_in(tmp_path / "step", input=tiny_bundle(tmp_path / "whole"))
    with pytest.raises(UserError, match="step 'step' has no teacher. Add 'teacher: <an earlier step>'"):
        part("distill", "affine").objective(context, tiny_denoiser("video_dit"), None, words())
