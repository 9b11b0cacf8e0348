"""Rewards: values by hand, gradients through the last steps and the decoder, anchor, validation, refusals, resume."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import Colours, Pixels, batch, part, words

from dit_compress.core.errors import UserError
from dit_compress.data.samples import Samples
from dit_compress.model.denoiser import Cond
from dit_compress.model.flow import Flow, euler, interpolate
from dit_compress.model.spec import Spec
from dit_compress.plugin.options import Part, Plugin
from dit_compress.plugin.registry import Registry, installed
from dit_compress.plugin.sources import Source
from dit_compress.recipe import make_part
from dit_compress.step.world import World
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress.train.guards import Alarms
from dit_compress.train.loop import fit
from dit_compress.train.validation import Monitors, Validator
from dit_compress_plugins.distill_reward import RewardOptions
from dit_compress_plugins.distill_reward.distiller import RewardDistiller, RewardObjective
from dit_compress_plugins.distill_reward.rewards import (
    Reward,
    RewardPart,
    log_yes,
    need_gradients,
    share_of_yes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SCHEDULE = Flow(3.0, 3, 2.0)


class ColoursPart:
    """The toy reward as a part."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def create(self, _context: Any) -> Colours:
        return Colours()


def options_of(**given: Any) -> RewardOptions:
    reader = make_part("reward", "reader", installed())
    toy, judge = (
        Part("reward", Plugin(name=name, options=type(reader.options), load=f"{__name__}:ColoursPart"), reader.options)
        for name in ("colours", "other")
    )
    return RewardOptions(**{"reward": toy, "judge": judge, **given})


def objective(start: Any = None, schedule: Flow = SCHEDULE, made: Any = None, **given: Any) -> RewardObjective:
    answering = made or {"reward": Colours(), "judge": Colours()}
    student = tiny_denoiser("video_dit").requires_grad_()
    return RewardObjective(options_of(**given), student, words(), Pixels(), answering, schedule, start)


# ------------------------------------------------------------------ values by hand


class Scaled(torch.nn.Module):
    """``v = a·x``."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor, _sigma: Tensor, _cond: Any) -> Tensor:
        return self.a * x


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("last", "slope"), [(2, 3.75), (1, 1.875)])
def test_gradients_through_the_last_steps_by_hand(last: int, slope: float, recompute: bool) -> None:
    """x0 = 1, sigma 1, 0.5, 0, v = a·x, a = -1: x = 2.25; r = -(x - 1)² has the slope 3.75, by the last step 1.875."""
    given = options_of(last_steps=last, recompute=recompute, anchor_weight=0)
    student: Any = Scaled()
    made = RewardObjective(given, student, words(), Pixels(), {"reward": Colours()}, Flow(1.0, 2, 1.0))
    x = made.sampled(torch.ones(1, 1, 1, 1, 1), Cond({}, {}))
    assert float(x.detach()) == 2.25
    (-(x - 1).square().sum()).backward()
    assert float(student.a.grad) == slope


def test_answers_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, -math.log(3)]])
    assert log_yes(logits).tolist() == pytest.approx([math.log(0.5), (math.log(0.75) + math.log(0.25)) / 2])
    assert share_of_yes(logits).tolist() == pytest.approx([0.5, 0.5])


@torch.no_grad()
def test_the_loss_is_of_what_the_whole_sampling_gives_and_each_aspect_is_logged() -> None:
    made = objective(anchor_weight=0)
    given = batch(made.text)
    losses = made.loss(made.phases[0], given)
    noise = given.streams.normal("noise", given.x0.shape[1:])
    latent = euler(made.student, noise, made.text(given.tokens), SCHEDULE.sigmas(), 2.0)
    expected = torch.nn.functional.logsigmoid(Colours()(Pixels()(latent), given.captions)).mean(0)
    assert [float(losses[f"aspect/{name}"]) for name in Colours.aspects] == pytest.approx(expected.tolist(), rel=1e-4)
    assert float(losses["loss"]) == float(losses["reward_loss"]) == pytest.approx(-float(expected.mean()), rel=1e-4)


def test_a_student_at_its_start_has_no_anchor_and_one_elsewhere_its_distance() -> None:
    made = objective(anchor_weight=3.0)
    given = batch(made.text)
    with torch.no_grad():
        assert float(made.loss(made.phases[0], given)["anchor_loss"]) == 0.0
    moved = objective(tiny_denoiser("video_dit", 1), anchor_weight=3.0)
    with torch.no_grad():
        losses, cond = moved.loss(moved.phases[0], given), moved.text(given.tokens)
        sigma = torch.tensor(SCHEDULE.sigmas())[given.streams.integers("anchor/sigma", 3)]
        x = interpolate(given.x0, given.streams.normal("anchor/noise", given.x0.shape[1:]), sigma)
        expected = (moved.student(x, sigma, cond) - moved.start(x, sigma, cond)).square().mean()
    assert float(losses["anchor_loss"]) == pytest.approx(float(expected), rel=1e-4)
    total = float(losses["reward_loss"] + 3 * losses["anchor_loss"])
    assert float(losses["loss"]) == pytest.approx(total, rel=1e-5)


def test_recomputed_steps_change_nothing() -> None:
    found = []
    for recompute in (False, True):
        made = objective(last_steps=2, recompute=recompute)
        loss = made.loss(made.phases[0], batch(made.text))["loss"]
        loss.backward()
        found.append((float(loss.detach()), made.student.module.proj_out.weight.grad.clone()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


# ------------------------------------------------------------------ validation


class Half(Colours):
    """A judge that is never sure, and sees what it is shown."""

    def forward(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        self.largest = float(video.abs().max())
        return torch.zeros(len(captions), 2)


@torch.no_grad()
def test_a_validation_asks_critic_and_judge_and_compares_by_the_judge() -> None:
    judge = Half()
    made = objective(made={"reward": Colours(), "judge": judge})
    made.codec.mixture.mul_(50)  # type: ignore[operator]
    losses = made.loss(made.phases[0], replace(batch(made.text), held_out=True))
    assert float(losses["loss"]) == float(losses["judge"]) == float(losses["judge/warm"]) == 0.5
    assert judge.largest == 1.0, "the judge sees clipped pixels"
    assert set(losses) == {"loss", *made.phases[0].shown}
    assert made.phases[0].shown == ("critic", "critic/bright", "critic/warm", "judge", "judge/bright", "judge/warm")
    alone = objective(made={"reward": Colours()}, judge=None)
    losses = alone.loss(alone.phases[0], replace(batch(made.text), held_out=True))
    assert float(losses["loss"]) == pytest.approx(1 - float(losses["critic"]))


def samples() -> Samples:
    given = batch(words(), size=8)
    return Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False)


def trained(folder: Path, made: Any = None, **given: Any) -> tuple[RewardObjective, Any]:
    objective_ = objective(made=made, **{"steps": 4, "batch": 4, "checkpoint_every": 2, "lr": 1e-2, **given})
    context = tiny_context(folder)
    context.trackers = [make_part("tracker", "jsonl", installed())]
    options, looks = objective_.options, None
    if options.validation is not None:
        alarms = Alarms(context, mends=options.mends)
        looks = Monitors(options, alarms, Validator(samples(), 4, 4, 0, World(), bf16=False), None)
    fit(objective_, samples(), options, context, looks)
    return objective_, context


@pytest.mark.slow(20)
def test_a_critic_that_rises_while_the_judge_does_not_is_an_alarm_and_patience_ends_the_step(tmp_path: Path) -> None:
    made = {"reward": Colours(), "judge": Half()}
    made["reward"].scale.data.fill_(20.0)
    look = {"every": 2, "samples": 4, "result": "best", "patience": 3}
    given = {"steps": 20, "validation": look, "anchor_weight": 0}
    first, context = trained(tmp_path, made, **given)
    lines = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    seen = [
        (line["step"] + 1, line["validation/critic"], line["validation/judge"])
        for line in lines
        if "validation/judge" in line
    ]
    assert [step for step, *_ in seen] == [2, 4, 6, 8], "the first is the best, and three more are waited for"
    assert len(lines) == 8
    assert seen[-1][1] > seen[0][1] + 0.02
    said = "\n".join(context.notes)
    assert "warning, the critic is being deceived: it went from" in said
    assert "and the judge from 0.500 to 0.500 at step" in said
    assert "End at the judge's best (validation: {result: best, patience: 2})" in said
    assert "ended after 8 steps: no validation was better than after 2" in said
    again, _ = trained(tmp_path, {**made, "judge": Half()}, **given)
    for ours, theirs in zip(again.student.parameters(), first.student.parameters(), strict=True):
        assert torch.equal(ours, theirs), "killed before its bundle was written, it has nothing left to train"
    assert len((tmp_path / "curves.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow(20)
def test_a_resumed_step_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole", last_steps=2, recompute=True, ema=0.5)
    trained(tmp_path / "killed", last_steps=2, recompute=True, ema=0.5)
    for checkpoint in (tmp_path / "killed" / "checkpoints").iterdir():
        if checkpoint.name != "step-00000002":
            shutil.rmtree(checkpoint)
    again, _ = trained(tmp_path / "killed", last_steps=2, recompute=True, ema=0.5)
    ours, theirs = again.student.state_dict(), whole.student.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert (tmp_path / "killed" / "curves.jsonl").read_text() == (tmp_path / "whole" / "curves.jsonl").read_text()


# ------------------------------------------------------------------ refusals


class Broken(Colours):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        bright, warm = super().forward(video, captions).unbind(1)
        found = {
            "shape": bright,
            "nan": torch.stack([bright, warm * float("nan")], 1),
            "no gradient": torch.stack([bright, warm.detach()], 1),
            "none at all": torch.stack([bright, warm], 1).detach(),
            "rounded": torch.stack([bright, super().forward((video * 127.5).round() / 127.5, captions)[:, 1]], 1),
            "steep": torch.stack([bright, (video - video.detach()).abs().sqrt().mean((1, 2, 3, 4))], 1),
        }
        return found[self.how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("shape", r"the reward 'mine' gives \[2\] for 2 videos and 2 aspects. Return logits \[2, 2\]"),
        ("nan", "the reward 'mine' gives nan for the aspect 'warm' of real clips"),
        ("no gradient", "the reward 'mine' has no gradient from the aspect 'warm' to the pixels"),
        ("none at all", "the reward 'mine' has no gradient from the aspect 'bright' to the pixels"),
        (
            "rounded",
            "the reward 'mine' has no gradient from the aspect 'warm' to the pixels. Compute it without rounding",
        ),
        ("steep", "the gradient of the reward 'mine' from the aspect 'bright' to the pixels is nan"),
    ],
)
def test_a_broken_reward_is_named(how: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        need_gradients("mine", Broken(how), torch.rand(2, 3, 2, 4, 4), ["a", "bb"])


def test_the_step_tries_reward_and_judge_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    context = tiny_context(tmp_path / "step", input=bundle)
    step = RewardDistiller(options_of(sampling_steps=2))
    made = step.objective(context, bundle.denoiser(), None, context.text())
    assert list(made.roles) == ["student", "text", "codec", "start", "reward", "judge"]
    assert (len(made.grid), made.guidance) == (3, bundle.flow.guidance)
    monkeypatch.setattr(ColoursPart, "create", lambda *_: Broken("nan"))
    with pytest.raises(UserError, match="the reward 'colours' gives nan for the aspect 'warm' of real clips"):
        step.objective(context, bundle.denoiser(), None, context.text())


def test_more_last_steps_than_sampling_steps_are_refused(tmp_path: Path) -> None:
    spec = tiny_bundle(tmp_path / "bundle").spec
    said = "'last_steps: 3' is more than there are sampling steps, 2. Set 'last_steps' to 2 or less, or raise 'sampling_steps'"
    with pytest.raises(UserError, match=said):
        RewardDistiller(options_of(last_steps=3, sampling_steps=2)).plan(spec)
    after = RewardDistiller(options_of(last_steps=2, sampling_steps=2, guidance=1)).plan(spec)
    assert after.flow == replace(spec.flow, num_steps=2, guidance=1)
    assert RewardDistiller(options_of(last_steps=40)).plan(spec).flow == spec.flow


def test_parts_that_can_not_work_are_refused_when_the_step_is_planned(tmp_path: Path) -> None:
    spec = tiny_bundle(tmp_path / "bundle").spec
    reader, clip = (
        make_part("reward", given, installed()) for given in ("reader", {"use": "transformers", "path": "/nowhere"})
    )
    said = "the reward 'reader' has no gradient to the pixels. Make it the 'judge', and name another"
    with pytest.raises(UserError, match=said):
        RewardDistiller(options_of(reward=reader)).plan(spec)
    for slots in ({"reward": clip}, {"judge": clip}):
        with pytest.raises(UserError, match="/nowhere: no config.json there. Export the whole model"):
            RewardDistiller(options_of(**slots)).plan(spec)
    assert RewardDistiller(options_of(judge=reader)).plan(spec).flow == spec.flow
    with pytest.raises(ValueError, match="the 'judge' is the critic itself, and sees nothing besides: name another"):
        options_of(reward=reader, judge=reader)
    assert options_of(anchor_weight=0).idle_slots == {"start": "'anchor_weight' above 0"}
    assert options_of().idle_slots == {}


def test_latents_without_pixels_are_refused_when_the_step_is_planned(tmp_path: Path) -> None:
    spec = tiny_bundle(tmp_path / "bundle").spec
    given: Spec = part("latent", "given", channels=8).plan(spec)
    with pytest.raises(UserError, match="'latent: {use: given}' can't show pixels"):
        RewardDistiller(options_of()).plan(given)


def test_a_start_of_another_text_encoder_is_refused(tmp_path: Path) -> None:
    spec = tiny_bundle(tmp_path / "bundle").spec
    assert spec.text is not None
    other = replace(spec, text=replace(spec.text, config={**spec.text.config, "layers": 9}))
    (found,) = RewardDistiller(options_of()).misfits(spec, {"start": other})
    assert "the start knows the captions of another text encoder than the student's" in str(found)
    assert RewardDistiller(options_of()).misfits(spec, {"start": spec}) == []


# ------------------------------------------------------------------ a reward of one's own


def test_the_example_of_the_page_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found beside the plugin that adds the kind, and it passes the trial."""
    page = (Path(__file__).parents[2] / "docs" / "plugins" / "reward.md").read_text("utf-8")
    for name, text in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", page, re.DOTALL):
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    names = ("dit_compress_plugins.distill_reward", "warm_colours")
    registry.add([Source(name, "test", "", lambda name=name: importlib.import_module(name)) for name in names])
    assert registry.broken == []
    reward = make_part("reward", {"use": "warm", "scale": 2}, registry).build().create(None)
    need_gradients("warm", reward, torch.rand(2, 3, 2, 4, 4), ["a", "b"])
    assert reward(torch.ones(1, 3, 1, 2, 2), ["a"]).tolist() == [[0.0, 2.0]]


def test_the_page_has_the_contract() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins" / "reward.md").read_text("utf-8")
    for method in (RewardPart.create, Reward.__call__):
        said = [line.strip() for line in inspect.getsource(method).splitlines()[:1]]
        assert all(line in page for line in said), said
