"""Scaled KD: the sum and its slopes by hand, the balance by noise level, any teacher, resume."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import batch, context_in, part, tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.data.samples import Samples
from dit_compress.model import flow
from dit_compress.model.flow import Flow
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.features import grid_of, resampled
from dit_compress.train.loop import fit
from dit_compress_plugins.distill_scaled import ScaledOptions
from dit_compress_plugins.distill_scaled.distiller import RunningMeans, ScaledObjective
from dit_compress_plugins.distill_scaled.scaling import bins_of, scaled, task_share

if TYPE_CHECKING:
    from pathlib import Path


def objective(teacher: str = "video_dit", **options: Any) -> ScaledObjective:
    bins = {} if "weight" in options else {"bins": 4}
    given = ScaledOptions(**{"caption_dropout": 0.0, **bins, **options})
    torch.manual_seed(5)
    return ScaledObjective(given, tiny_denoiser("video_dit"), tiny_denoiser(teacher, 1), words(), Flow())


# ------------------------------------------------------------------ values by hand


def test_the_sum_has_the_tasks_value_and_both_slopes() -> None:
    """task 2, kd 0.5, alpha 0.25: 0.25·2 + 0.75·4·0.5 = 2; slopes 0.25 and 0.75·4 = 3."""
    task, kd = (torch.tensor([value], requires_grad=True) for value in (2.0, 0.5))
    total = scaled(task, kd, torch.tensor([0.25]), task / kd)
    total.sum().backward()
    assert (float(total.detach()), float(task.grad), float(kd.grad)) == (2.0, 0.25, 3.0)


def test_data_count_in_the_middle_and_the_teacher_at_the_ends() -> None:
    sigma = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    # At 0.1 the logit is -2.197225: exp(-2.413898) / 0.36 = 0.248513.
    assert task_share(sigma).tolist() == pytest.approx([0.0, 0.248513, 1.0, 0.248513, 0.0], abs=1e-5)
    assert task_share(torch.linspace(0, 1, 101)).max() == 1.0


def test_bins_are_equal_parts() -> None:
    assert bins_of(torch.tensor([0.0, 0.24, 0.25, 0.99, 1.0]), 4).tolist() == [0, 0, 1, 3, 3]


def test_the_balance_is_of_each_noise_level() -> None:
    """Two samples in the first bin, one in the last: task 2 and 4, kd 1 and 2 there; 3 over 6 here; none between."""
    means = RunningMeans(("output",), 3, 0.5)
    where = torch.tensor([0, 0, 2])
    losses = {"task": torch.tensor([2.0, 4.0, 3.0]), "output": torch.tensor([1.0, 2.0, 6.0])}
    values = {name: float(value) for name, value in means.shares(losses, where).items()}
    assert values == pytest.approx(
        {"task@0": 2.0, "task@1": 0.0, "task@2": 1.0, "output@0": 1.0, "output@1": 0.0, "output@2": 2.0}
    )
    assert means.ratio("output", torch.tensor([0, 1, 2])).tolist() == [1.0, 1.0, 1.0]
    means.take(values)
    assert values == {}, "nothing of it is logged"
    assert means.get_buffer("task").tolist() == [1.0, 0.0, 0.5]
    assert means.ratio("output", torch.tensor([0, 1, 2])).tolist() == [2.0, 1.0, 0.5]
    means.take({**dict.fromkeys(("task@1", "task@2", "output@1", "output@2"), 0.0), "task@0": 0.0, "output@0": 1.0})
    assert means.ratio("output", torch.tensor([0])).tolist() == pytest.approx([0.5 / 0.75])


def test_a_bin_that_is_not_seen_keeps_its_balance() -> None:
    means = RunningMeans(("output",), 2, 0.9)
    means.take({"task@0": 1.0, "task@1": 3.0, "output@0": 1.0, "output@1": 2.0})
    for _ in range(5):
        means.take({"task@0": 1.0, "task@1": 0.0, "output@0": 1.0, "output@1": 0.0})
    assert float(means.ratio("output", torch.tensor([1]))) == pytest.approx(1.5)


# ------------------------------------------------------------------ the objective


@pytest.mark.parametrize("teacher", ["video_dit", "ltx", "wan"])
def test_the_sum_recomputed(teacher: str) -> None:
    made = objective(teacher)
    made.means.take({f"{name}@{place}": float(1 + place + len(name)) for name in ("task", "output", "feature")
                     for place in range(4)})  # fmt: skip
    given = batch(made.text)
    with torch.no_grad():
        losses = made.loss(made.phases[0], given)
        noise, sigma = (
            given.streams.normal("noise", given.x0.shape[1:]),
            Flow().warp(torch.sigmoid(given.streams.normal("sigma", ()))),
        )
        x, cond = flow.interpolate(given.x0, noise, sigma), made.text(given.tokens)
        predicted, y_S = made.student.features(x, sigma, cond, [2])
        target, y_T = made.teacher.features(x, sigma, cond, [2])
        assert y_T[2].shape[1] == {"wan": 2}.get(teacher, 8)
        y_S = resampled(made.projector(y_S[2]), grid_of(made.student, x), grid_of(made.teacher, x))
        task, output = ((predicted - other).square().flatten(1).mean(1) for other in (noise - given.x0, target))
        feature, alpha = (y_S - y_T[2]).square().flatten(1).mean(1), task_share(sigma)
        place = bins_of(sigma, 4)
        expected = sum(
            alpha * task + (1 - alpha) * (5.0 + place) / (1.0 + length + place) * kd
            for kd, length in ((output, 6), (feature, 7))
        )
    assert float(losses["loss"]) == pytest.approx(float(expected.mean()), rel=1e-4)
    assert float(losses["flow_loss"]) == pytest.approx(float(task.mean()), rel=1e-5)
    assert float(losses["output_loss"]) == pytest.approx(float(output.mean()), rel=1e-5)
    assert float(losses["feature_loss"]) == pytest.approx(float(feature.mean()), rel=1e-4)


def test_a_fixed_weight_takes_the_place_of_the_balance() -> None:
    for weight in (0.0, 0.5):
        made = objective(weight=weight)
        losses = {name: float(value.detach()) for name, value in made.loss(made.phases[0], batch(made.text)).items()}
        total = losses["flow_loss"] + weight * (losses["output_loss"] + losses["feature_loss"])
        assert losses["loss"] == pytest.approx(total, rel=1e-5)
        assert "output_ratio" not in losses
    with pytest.raises(
        ValueError, match="'bins' and 'ratio_decay' belong to the scaling, which 'weight' replaces: leave"
    ):
        ScaledOptions(weight=0.5, bins=4, ratio_decay=0.5)


def test_the_projector_is_not_the_identity() -> None:
    made = objective()
    weight = made.projector.weight
    assert weight.shape == (48, 48)
    assert float((weight - torch.eye(48)).detach().norm()) > 1.0


def test_without_features_nothing_projects() -> None:
    made = objective(features=False)
    losses = made.loss(made.phases[0], batch(made.text))
    assert "feature_loss" not in losses
    assert made.phases[0].updates == ("student",)
    assert "projector" not in made.roles


def test_a_teacher_with_captions_of_its_own_is_given_them() -> None:
    made = objective(caption_dropout=0.5)
    other = words()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    both = ScaledObjective(made.options, made.student, made.teacher, words(), Flow(), 1e-3, other)
    given = batch(both.text, size=8)
    drop = given.streams.uniform("dropout")
    ours, theirs = both.captions(given, drop)
    torch.testing.assert_close(theirs["embedding"], other.cond(given.captions).drop(drop < 0.5)["embedding"])
    torch.testing.assert_close(ours["embedding"], both.text.cond(given.captions).drop(drop < 0.5)["embedding"])
    assert not torch.equal(ours["embedding"], theirs["embedding"])
    assert both.phases[0].updates == ("student", "text", "projector")


# ------------------------------------------------------------------ state


def trained(folder: Path, rows: list[dict[str, float]], **options: Any) -> ScaledObjective:
    from dit_compress.train import loop

    made = objective("wan", steps=6, batch=4, lr=1e-3, warmup=0, checkpoint_every=3, ratio_decay=0.5, **options)
    given = batch(made.text, size=8)
    samples = Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False)

    def noted(*args: Any) -> dict[str, float]:
        rows.append(step(*args))
        return rows[-1]

    step, loop.train_step = loop.train_step, noted
    try:
        fit(made, samples, made.options, context_in(folder))
    finally:
        loop.train_step = step
    return made


def test_a_resumed_step_has_the_balance_it_had(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    whole = trained(tmp_path / "whole", rows)
    assert set(rows[0]) == {
        "loss", "flow_loss", "output_loss", "feature_loss", "output_ratio", "feature_ratio", "grad_student",
        "grad_projector",
    }  # fmt: skip
    assert rows[0]["output_ratio"] == 1.0
    assert rows[1]["output_ratio"] != 1.0
    trained(tmp_path / "killed", [])
    for checkpoint in (tmp_path / "killed" / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    again = trained(tmp_path / "killed", left := [])
    assert left == rows[3:]
    for role in ("student", "projector"):
        ours, theirs = again.roles[role].module.state_dict(), whole.roles[role].module.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), role
    assert float(again.means.get_buffer("task").sum()) > 0
    assert not any(name.startswith("means") for name in again.student.module.state_dict())


# ------------------------------------------------------------------ from bundles


def test_the_step_shares_a_text_encoder_that_is_the_same(tmp_path: Path) -> None:
    """Trained before: it stays, and the teacher is given the same embeddings; in a first training it is trained."""
    lineage = [{"kind": "distill"}]
    teacher = tiny_bundle(tmp_path / "teacher", lineage=lineage)
    for name, record, updates in (("old", lineage, False), ("new", [], True)):
        context = context_in(tmp_path / "step", teacher=teacher, input=tiny_bundle(tmp_path / name, lineage=record))
        made = part("distill", "scaled").objective(
            context, tiny_denoiser("video_dit"), tiny_denoiser("wan"), context.text()
        )
        assert ("text" in made.phases[0].updates) is updates
        assert (made.teacher_text is not None) is updates


def test_text_among_the_tokens_is_refused_with_the_option_that_leaves_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_bundle(tmp_path / "a").spec
    step = part("distill", "scaled")
    assert step.misfits(spec, {"teacher": spec}) == []
    outline = spec.outline()
    monkeypatch.setattr(type(outline), "tokens", lambda _, size: 5)
    said = "the last feature of the {} has 8 tokens where its latent has 5. Set 'features: false'"
    for whose, error in zip(("student", "teacher"), step.misfits(spec, {"teacher": spec}), strict=True):
        assert str(error).startswith(said.format(whose))
    assert part("distill", "scaled", features=False).misfits(spec, {"teacher": spec}) == []


def test_no_teacher_is_an_error_with_the_step(tmp_path: Path) -> None:
    context = context_in(tmp_path / "step", input=tiny_bundle(tmp_path / "whole"))
    with pytest.raises(UserError, match="step 'step' has no teacher. Add 'teacher: <an earlier step>'"):
        part("distill", "scaled").objective(context, tiny_denoiser("video_dit"), None, words())
