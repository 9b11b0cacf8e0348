"""Affine KD: Eq. 5 and 6 recomputed, block pairs by the log, who gets a gradient."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from toy import batch, context_in, part, tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.data.samples import Samples
from dit_compress.model import flow
from dit_compress.model.cut import compact
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.structure.compact import block_axis
from dit_compress.structure.copies import deep_copy
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.distill import block_pairs, group_pairs
from dit_compress.train.loop import draw_batch, fit
from dit_compress.train.losses import cosine_distance, flow_loss, relative_squared_distance, squared_distance
from dit_compress_plugins.distill_affine import AffineOptions
from dit_compress_plugins.distill_affine.distiller import AffineDistiller, AffineObjective, affine_map

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


def test_what_guidance_does_is_learnt_on_request() -> None:
    """The second target is u + g·(c - u) of the teacher, u its answer without a caption."""
    student, teacher = tiny_denoiser("video_dit", 0), tiny_denoiser("video_dit", 1)
    made = objective(student, teacher, [(2, 2)], output_weight=2.0, guidance=3.0)
    given = batch(made.text)
    losses = made.loss(made.phases[0], given)
    with torch.no_grad():
        noise, sigma = given.streams.normal("noise", given.x0.shape[1:]), Flow(3.0).warp(given.streams.uniform("sigma"))
        x, cond = flow.interpolate(given.x0, noise, sigma), made.text(given.tokens)
        without = teacher(x, sigma, cond.drop(torch.ones(len(x), dtype=torch.bool)))
        target = 3 * teacher(x, sigma, cond) - 2 * without
        expected = flow_loss(student(x, sigma, cond), target)
    assert float(losses["output_loss"].detach()) == pytest.approx(float(expected), rel=1e-5)
    assert AffineDistiller(made.options).flow(Flow(3.0, guidance=3.0)) == Flow(3.0, guidance=1.0)
    assert AffineDistiller(AffineOptions()).flow(Flow(3.0, guidance=3.0)).guidance == 3.0
    assert made.phases[0].score == "output_loss", "guided, a good student leaves the data's velocity"


def test_guidance_without_a_second_target_is_refused() -> None:
    with pytest.raises(ValidationError, match="set 'output_weight'"):
        AffineOptions(guidance=2.0)


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
    whole = [(index, index) for index in range(count)]
    for target in ("ends", "origins"):
        assert group_pairs(whole, count, groups, target) == [(place, place) for place in places]


@pytest.mark.parametrize(
    ("length", "groups", "kept", "ends", "origins"),
    [
        # Two groups of four, an end of each gone: the student's last block of each stands for the whole group.
        (8, 2, (0, 2, 4, 6), [(1, 3), (3, 7)], [(1, 2), (3, 6)]),
        # The ends stay: what is compared is the same either way.
        (8, 2, (1, 3, 5, 7), [(1, 3), (3, 7)], [(1, 3), (3, 7)]),
        # Groups end at 1, 3, 5 and 7. The second is gone: the student's first block stands for both.
        (8, 4, (0, 5, 6), [(0, 3), (1, 5), (2, 7)], [(0, 0), (1, 5), (2, 6)]),
        # The first is gone: nothing of the student is its output.
        (8, 4, (4, 6, 7), [(0, 5), (2, 7)], [(0, 4), (2, 7)]),
        # The last two are gone.
        (8, 4, (1, 2), [(0, 1), (1, 7)], [(0, 1), (1, 2)]),
        # The paper's depth, 28 to 20: groups of seven end at 6, 13, 20 and 27.
        (
            28, 4, (0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 14, 15, 16, 17, 18, 21, 22, 23, 24, 25),
            [(4, 6), (9, 13), (14, 20), (19, 27)], [(4, 4), (9, 11), (14, 18), (19, 25)],
        ),
        # More groups than blocks; a single block.
        (3, 8, (0, 2), [(0, 1), (1, 2)], [(0, 0), (1, 2)]),
        (5, 2, (3,), [(0, 4)], [(0, 3)]),
    ],
)  # fmt: skip
def test_the_students_output_of_a_group_learns_the_groups_end(
    length: int, groups: int, kept: tuple[int, ...], ends: list[Any], origins: list[Any]
) -> None:
    pairs = list(enumerate(kept))
    assert group_pairs(pairs, length, groups, "ends") == ends
    assert group_pairs(pairs, length, groups, "origins") == origins


def test_the_step_pairs_by_the_plan(tmp_path: Path) -> None:
    """Of three blocks the first stays, in one group: it learns the output of the last, or of itself."""
    student = tiny_denoiser("video_dit")
    log = (drop_blocks(student, 0),)
    bundles = {
        "teacher": tiny_bundle(tmp_path / "whole"),
        "input": tiny_bundle(tmp_path / "a", denoiser=student, log=log),
    }
    context = context_in(tmp_path / "step", **bundles)
    for pairs, expected in (("ends", [(0, 2)]), ("origins", [(0, 0)])):
        made = part("distill", "affine", groups=1, pairs=pairs)
        assert made.objective(context, student, tiny_denoiser("video_dit"), words()).pairs == expected


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


def test_features_are_of_the_teachers_longest_list() -> None:
    """Flux with two double and four single blocks, one of the four kept: the student's longest list is another."""
    config = {
        "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": [4, 4, 8],
        "guidance_embeds": False,
    }  # fmt: skip
    model = part("model", "diffusers", class_name="FluxTransformer2DModel", config=config)
    module = model.create()
    teacher, student = model.denoiser(module), deep_copy(model.denoiser(module))
    log = drop_blocks(student, 1)
    assert student.structure().main.path == "transformer_blocks"
    component = ComponentSpec("model", "diffusers", model.config_of(module))
    given = SimpleNamespace(spec=Spec(denoiser=component.appended(log)), flow=Flow())
    context: Any = SimpleNamespace(input=given, slot=lambda _: SimpleNamespace(spec=Spec(denoiser=component)))
    made = part("distill", "affine", groups=2).objective(context, student, teacher, words())
    assert (made.stack, made.pairs) == ("single_transformer_blocks", [(0, 3)])
    latent, sigma, cond = teacher.example(1, teacher.example_size)
    with torch.no_grad():
        _, taken = student.features(latent, sigma, cond, [0], made.stack)
        seen: list[Any] = []
        last = student.module.single_transformer_blocks[0]
        with pytest.MonkeyPatch.context() as patch:
            forward = last.forward
            patch.setattr(last, "forward", lambda *a, **k: seen.append(forward(*a, **k)) or seen[-1])
            student(latent, sigma, cond)
    assert any(torch.equal(taken[0], value) for value in seen[0])


def test_no_teacher_is_an_error_with_the_step(tmp_path: Path) -> None:
    context = context_in(tmp_path / "step", input=tiny_bundle(tmp_path / "whole"))
    with pytest.raises(UserError, match="step 'step' has no teacher. Add 'teacher: <an earlier step>'"):
        part("distill", "affine").objective(context, tiny_denoiser("video_dit"), None, words())


# ------------------------------------------------------------------ the weight of the features


SHARED = [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("sim", "distance"),
    [("cosine", cosine_distance), ("mse", squared_distance), ("relative_mse", relative_squared_distance)],
)
def test_any_sim_is_the_feature_loss(sim: str, distance: Any) -> None:
    student, teacher = tiny_denoiser("video_dit", 0), tiny_denoiser("video_dit", 1)
    made = objective(student, teacher, [(2, 2)], sim=sim)
    given = batch(made.text)
    with torch.no_grad():
        noise, sigma = given.streams.normal("noise", given.x0.shape[1:]), Flow(3.0).warp(given.streams.uniform("sigma"))
        x, cond = flow.interpolate(given.x0, noise, sigma), made.text(given.tokens)
        (_, y_S), (_, y_T) = (model.features(x, sigma, cond, [2]) for model in (student, teacher))
        found = made.loss(made.phases[0], given)["feature_loss"]
    assert float(found) == pytest.approx(float(distance(y_S[2], y_T[2])), rel=1e-5)
    assert float(found) > 1e-3


def gradient_norm(made: AffineObjective, given: Any, term: str) -> float:
    """By autograd alone: of one term, by the student's parameters."""
    value = made.loss(made.phases[0], given)[term]
    found = torch.autograd.grad(value, list(made.student.parameters()), allow_unused=True)
    return float(torch.cat([gradient.flatten() for gradient in found if gradient is not None]).double().norm())


def trained(
    folder: Path, steps: int, accumulate: int = 1, **options: Any
) -> tuple[AffineObjective, list[dict[str, float]]]:
    """Train on a batch that is all the data; what was logged of each step."""
    from dit_compress.train import loop

    student, teacher = tiny_denoiser("video_dit", 0), tiny_denoiser("video_dit", 1)
    drop_blocks(student, 1, 2)
    made = objective(
        student, teacher, SHARED, steps=steps, batch=4, accumulate=accumulate, lr=1e-3, warmup=0, **options
    )
    rows: list[dict[str, float]] = []

    def noted(*given: Any) -> dict[str, float]:
        rows.append(step(*given))
        return rows[-1]

    step, loop.train_step = loop.train_step, noted
    try:
        fit(made, samples(made), made.options, context_in(folder, input=tiny_bundle(folder / "bundle")))
    finally:
        loop.train_step = step
    return made, rows


def samples(made: AffineObjective) -> Samples:
    given = batch(made.text, size=4)
    return Samples(given.x0.numpy(), [""] * 4, given.tokens, pixels=False)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_share_is_that_of_autograd(tmp_path: Path, accumulate: int) -> None:
    """Norm of alpha times the features' gradient over the flow's, of the whole batch, before the first update."""
    options = {"alpha": 0.5, "output_weight": 2.0}
    _, rows = trained(tmp_path / "a", 1, accumulate, **options)
    made, _ = trained(tmp_path / "b", 1, **options)
    fresh = objective(tiny_denoiser("video_dit", 0), made.teacher, SHARED, **options)
    drop_blocks(fresh.student, 1, 2)
    made.teacher.requires_grad_(requires_grad=False)
    given = draw_batch(samples(fresh), 4, 0, 0)
    norms = {term: gradient_norm(fresh, given, term) for term in ("flow_loss", "feature_loss", "output_loss")}
    assert rows[0]["alpha"] == 0.5
    assert rows[0]["kd_share"] == pytest.approx(0.5 * norms["feature_loss"] / norms["flow_loss"], rel=1e-4)
    assert rows[0]["output_share"] == pytest.approx(2 * norms["output_loss"] / norms["flow_loss"], rel=1e-4)
    assert rows[0]["kd_share"] > 1e-3


def test_measuring_changes_no_weight(tmp_path: Path) -> None:
    often, rows = trained(tmp_path / "often", 4, share_every=1)
    seldom, others = trained(tmp_path / "seldom", 4, share_every=4)
    assert all(torch.equal(a, b) for a, b in zip(often.student.parameters(), seldom.student.parameters(), strict=True))
    assert len({row["kd_share"] for row in rows}) == 4
    assert len({row["kd_share"] for row in others}) == 1


def test_alpha_is_set_by_the_share(tmp_path: Path) -> None:
    """At each measurement alpha is what makes the share; between two it stays. Shown is the share that trained."""
    made, rows = trained(tmp_path / "step", 4, kd_share=0.2, share_every=2)
    drifted = 0.2 * rows[0]["alpha"] / rows[2]["alpha"]
    assert [row["kd_share"] for row in rows] == pytest.approx([0.2, 0.2, drifted, drifted], rel=1e-5)
    assert rows[0]["alpha"] == rows[1]["alpha"] != rows[2]["alpha"] == rows[3]["alpha"]
    assert made.options.alpha is None
    row = rows[0]
    assert row["loss"] == pytest.approx(row["flow_loss"] + row["alpha"] * row["feature_loss"], rel=1e-5)


def test_a_resumed_step_has_the_alpha_it_had(tmp_path: Path) -> None:
    """Killed between two measurements: alpha is in the checkpoint, and every weight comes out the same."""
    options = {"kd_share": 0.2, "share_every": 4, "checkpoint_every": 2}
    whole, _ = trained(tmp_path / "whole", 6, **options)
    folder = tmp_path / "killed"
    trained(folder, 6, **options)
    for checkpoint in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    (left,) = (folder / "checkpoints").iterdir()
    assert left.name == "step-00000002"
    resumed, rows = trained(folder, 6, **options)
    assert len(rows) == 4
    for a, b in zip((*whole.student.parameters(), *whole.aligner.state_dict().values()),
                    (*resumed.student.parameters(), *resumed.aligner.state_dict().values()), strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_terms_without_a_gradient_leave_alpha(tmp_path: Path) -> None:
    made = objective(tiny_denoiser("video_dit"), tiny_denoiser("video_dit"), [(0, 0)], kd_share=0.3)
    made.weigh({"flow_loss": 2.0, "feature_loss": 4.0})
    assert float(made.aligner.alpha) == pytest.approx(0.15)
    for norms in ((2.0, 0.0), (0.0, 3.0), (float("nan"), 1.0)):
        made.weigh(dict(zip(("flow_loss", "feature_loss"), norms, strict=True)))
        assert float(made.aligner.alpha) == pytest.approx(0.15)


def test_one_of_alpha_and_share() -> None:
    assert AffineOptions().alpha == 0.01
    again = AffineOptions(**AffineOptions(kd_share=0.2).model_dump())
    assert (again.alpha, again.kd_share) == (None, 0.2)
    with pytest.raises(ValidationError, match="'alpha' and 'kd_share' both set the weight of the feature loss"):
        AffineOptions(alpha=0.1, kd_share=0.2)
    with pytest.raises(ValidationError, match="nothing sets the weight of the feature loss"):
        AffineOptions(alpha=None)
