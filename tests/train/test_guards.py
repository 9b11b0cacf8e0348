"""Guards: measures by hand, limits, and real small trainings: injected failures are told, healthy seeds are not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_loop import context_in
from toy import words

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import generator
from dit_compress.data.samples import Samples
from dit_compress.model.flow import Flow
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.step.world import World
from dit_compress.train import measures
from dit_compress.train.distill import is_trained
from dit_compress.train.guards import Alarms, CurveGuards, JudgeGuards, SampleGuards
from dit_compress.train.loop import fit
from dit_compress.train.validation import Monitors, Validator, Watcher
from dit_compress_plugins.distill_adversarial import AdversarialOptions
from dit_compress_plugins.distill_adversarial.objective import AdversarialObjective
from dit_compress_plugins.distill_flow import FlowOptions
from dit_compress_plugins.distill_flow.distiller import FlowObjective

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from dit_compress.model.denoiser import Denoiser

# ------------------------------------------------------------------ measures, by hand


pytestmark = pytest.mark.slow(50)


def video(*frames: tuple[float, float, float]) -> Tensor:
    """One video ``[1,3,F,1,2]``: the left pixel has the frame's colour, the right one is black."""
    left = torch.tensor(frames, dtype=torch.float32).T[None, :, :, None, None]
    return torch.cat([left, torch.full_like(left, -1)], dim=-1)


def test_motion_is_the_change_over_twice_the_variance() -> None:
    """0, 1, 1 beside -1, -1, -1: variance 5/6 - 1/36; one of two pixels changes by 1 at one of two steps."""
    assert measures.motion(video((0, 0, 0), (1, 1, 1), (1, 1, 1))) == pytest.approx(1 / 4 / (2 * 29 / 36))
    assert measures.motion(video((0, 0, 0))) == 0.0
    assert measures.motion(torch.zeros(1, 3, 4, 2, 2)) == 0.0


def test_motion_is_that_of_the_edges_not_of_contrast_or_fine_noise() -> None:
    x = torch.arange(256)
    bars = torch.stack([((x - 2 * t) // 64 % 2) * 2.0 - 1 for t in range(9)])  # edges that move 2 pixels a frame
    fast = bars[None, None, :, None, :].expand(1, 3, 9, 256, 256)
    slow = fast[:, :, [0, 0, 0, 1, 1, 1, 2, 2, 2]]
    full = measures.motion(fast)
    assert measures.motion(slow) == pytest.approx(full * 2 / 8, rel=0.1)  # 2 of 8 steps show the change
    assert measures.motion(0.3 * fast) == pytest.approx(full, rel=1e-4)
    noise = torch.from_numpy(generator(0, "noise").standard_normal(fast.shape, dtype=np.float32))
    assert measures.motion(fast[:, :, :1].expand_as(fast) + 0.2 * noise) < 0.05 * full


def test_contrast_is_the_deviation_of_brightness() -> None:
    """Brightness 1 and -1: deviation sqrt(2) of two values; equal brightness: 0."""
    assert measures.contrast(video((1, 1, 1))) == pytest.approx(2**0.5)
    assert measures.contrast(video((-1, -1, -1))) == 0.0


def test_chroma_is_the_deviation_of_channels() -> None:
    """Channels 1, -1, 0 deviate by 1, the black pixel by 0; grey has none."""
    assert measures.chroma(video((1, -1, 0))) == pytest.approx(0.5)
    assert measures.chroma(video((0.3, 0.3, 0.3))) == pytest.approx(0, abs=1e-7)


def test_diversity_is_the_difference_within_a_group_over_the_variances() -> None:
    """Left pixels 0, 1 and 1 beside -1: variances 1/4, 1 and 1; two pairs differ by 1 in one of two pixels."""
    group = torch.stack([video((0, 0, 0)), video((1, 1, 1)), video((1, 1, 1))], dim=1)
    assert measures.diversity(group) == pytest.approx((0.4 + 0.4 + 0) / 3)
    assert measures.diversity(0.1 * group) == pytest.approx((0.4 + 0.4 + 0) / 3, rel=1e-3)


# ------------------------------------------------------------------ curves


def curve(tmp_path: Path, accuracies: list[float], **steps: int) -> Alarms:
    alarms = Alarms(context_in(tmp_path), mends=AdversarialOptions.mends)
    guards = CurveGuards(alarms, **steps)
    for step, accuracy in enumerate(accuracies):
        guards.look(step, {"discriminator/accuracy": accuracy, "loss": 1.0})
    return alarms


def test_a_discriminator_that_is_always_right_is_told(tmp_path: Path) -> None:
    assert curve(tmp_path, [0.995] * 99).raised == {}
    alarms = curve(tmp_path, [0.5, *[0.995] * 100])
    assert list(alarms.raised) == ["sure"]
    (said,) = alarms.context.notes
    assert said.startswith("warning, the discriminator has been right in 99% or more for 100 steps")
    assert "at step 100. Lower 'discriminator_lr', set 'r1'" in said


def test_without_a_mend_of_the_step_the_general_one_names_no_option_of_another_distiller(tmp_path: Path) -> None:
    alarms = Alarms(context_in(tmp_path), mends=FlowOptions.mends)
    guards = CurveGuards(alarms, sure_steps=2)
    for step in range(2):
        guards.look(step, {"accuracy": 1.0})
    (said,) = alarms.context.notes
    assert said.endswith("teaches the generator nothing at step 1. Lower the discriminator's learning rate")


def test_one_mistake_in_between_is_no_alarm(tmp_path: Path) -> None:
    assert curve(tmp_path, [*[1.0] * 99, 0.9, *[1.0] * 99]).raised == {}


def test_a_discriminator_that_tells_nothing_apart_is_told(tmp_path: Path) -> None:
    assert list(curve(tmp_path, [0.505] * 200).raised) == ["blind"]
    assert curve(tmp_path, [0.505] * 199).raised == {}
    assert curve(tmp_path, [0.49, 0.56] * 200).raised == {}


# ------------------------------------------------------------------ samples


def look(tmp_path: Path, shares: list[dict[str, float]], *, trained: bool) -> list[str]:
    alarms = Alarms(context_in(tmp_path))
    guards = SampleGuards(alarms, {"motion": 2.0, "chroma": 4.0, "contrast": 0.0}, trained)
    for step, share in enumerate(shares):
        given = {name: value * guards.references.get(name, 1.0) for name, value in share.items()}
        assert guards.look(step, given) == pytest.approx({k: v for k, v in share.items() if k != "contrast"})
    return list(alarms.raised)


@pytest.mark.parametrize(
    ("motion", "trained", "raised"),
    [
        ([0.4, 0.4], True, ["slow"]),
        ([0.04, 0.04], True, ["static", "slow"]),
        ([0.4], True, []),
        ([0.4, 0.6], True, []),
        ([0.3, 0.45], True, []),  # on its way up
        ([0.6, 0.7], True, []),
        ([0.2, 0.2], False, []),  # early samples of a new model are blurred
        ([0.01, 0.01], False, ["static"]),
    ],
)
def test_motion_has_limits(tmp_path: Path, motion: list[float], trained: bool, raised: list[str]) -> None:
    assert look(tmp_path, [{"motion": value, "chroma": 1.0} for value in motion], trained=trained) == raised


def test_a_measure_that_real_clips_lack_is_not_judged(tmp_path: Path) -> None:
    assert look(tmp_path, [{"motion": 1.0, "contrast": 0.0}] * 3, trained=True) == []


def test_an_alarm_is_raised_once_and_ends_the_step_where_asked(tmp_path: Path) -> None:
    alarms = Alarms(context_in(tmp_path), stop=True)
    alarms.stop_if_asked()
    for step in (3, 4):
        alarms.raise_once("slow", step, "videos crawl", "Do this")
    assert alarms.context.notes == ["warning, videos crawl at step 3. Do this"]
    with pytest.raises(UserError, match="step: step 3: videos crawl. Do this"):
        alarms.stop_if_asked()
    Alarms(context_in(tmp_path)).stop_if_asked()


# ------------------------------------------------------------------ small real trainings

T, SIDE = 4, 6
COLOURS = {"a red circle": (1.0, -1.0, -1.0), "a green circle": (-1.0, 1.0, -1.0), "a blue circle": (-1.0, -1.0, 1.0)}


def clips(count: int, seed: int, *, speed: float = 1.0, grey: bool = False, places: int = SIDE) -> Samples:
    """Stripes that move to the right: latents that are their own video, ``[N,3,T,H,W]``; they begin at ``places``."""
    names = list(COLOURS)
    starts = generator(seed, "stripes").integers(places, size=count)
    made = np.full((count, 3, T, SIDE, SIDE), -0.5, dtype=np.float32)
    for number in range(count):
        colour = np.asarray([0.3] * 3 if grey else COLOURS[names[number % 3]], dtype=np.float32)
        for t in range(T):
            left = int(starts[number] + speed * t)
            made[number, :, t, :, [left % SIDE, (left + 1) % SIDE]] = colour[None, :, None]
    captions = [names[number % 3] for number in range(count)]
    text = words()
    with torch.no_grad():
        tokens = {k: v.clone() for k, v in text.encoder(text.encoder.tokenize(captions)).items()}
    return Samples(made, captions, tokens, pixels=False)


def model(seed: int) -> Denoiser:
    options = {"preset": "tiny", "layers": 2, "heads": 2, "head_width": 12, "ffn": 64, "channels": 3, "text_width": 16}
    torch.manual_seed(seed)
    maker = make_part("model", {"use": "video_dit", "preconditioned": True, **options}, installed()).build()
    return maker.denoiser(maker.create())


def trained(
    student: Denoiser,
    given: Samples,
    options: Any,
    folder: Path,
    seed: int,
    *,
    before: bool,
    real: Samples | None = None,
) -> list[str]:
    """Train with a watch; the alarms there were."""
    text, context = words(), context_in(folder)
    context.seed = seed
    schedule = Flow(3.0, 4 if isinstance(options, AdversarialOptions) else 8, 1.0)
    held_out = real or clips(9, seed + 100)
    watch = Watcher(
        student, text, schedule, held_out, options.watch, lambda x: x, seed=seed, world=World(), trained=before
    )
    validator = Validator(held_out, 9, 9, seed, World(), bf16=False) if options.validation else None
    looks = Monitors(options, Alarms(context), validator, watch)
    if isinstance(options, AdversarialOptions):
        part = make_part("discriminator", {"use": "dit_block", "frozen_blocks": 1, "learnable_blocks": 1}, installed())
        judge = part.build().create(student)
        objective: Any = AdversarialObjective(options, student, judge, text, schedule, None)
    else:
        objective = FlowObjective(options, student, text, None)
    fit(objective, given, options, context, looks)
    student.requires_grad_(requires_grad=False)
    return list(looks.alarms.raised)


WATCH = {"every": 20, "captions": 3}


def flow_options(steps: int, **more: Any) -> FlowOptions:
    usual = {"batch": 16, "lr": 4e-3, "warmup": 5, "decay": 0.1, "watch": WATCH, "checkpoint_every": 1000}
    return FlowOptions(**{"steps": steps, **usual, **more})


@pytest.mark.parametrize("seed", range(3))
def test_three_healthy_seeds_raise_no_alarm(tmp_path: Path, healthy: dict[str, Tensor], seed: int) -> None:
    """From random weights, and adversarially to four steps from weights that make moving stripes."""
    student, given = model(seed), clips(48, seed)
    if seed:  # of seed 0 the fixture tells
        assert trained(student, given, flow_options(80, batch=8), tmp_path / "flow", seed, before=False) == []
    student.load_state_dict(healthy)
    options = AdversarialOptions(
        steps=40, batch=8, lr=2e-4, discriminator_warmup=5, watch=WATCH, adversarial_weight=0.05, checkpoint_every=1000
    )
    assert trained(student, given, options, tmp_path / "adversarial", seed, before=True) == []
    lines = [json.loads(line) for line in (tmp_path / "adversarial" / "curves.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "watch/motion" in line] == [19, 39]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of a model that makes moving stripes."""
    student = model(0)
    assert trained(student, clips(48, 0), flow_options(160), tmp_path_factory.mktemp("healthy"), 0, before=False) == []
    return {name: value.clone() for name, value in student.state_dict().items()}


@pytest.mark.parametrize(
    ("broken", "steps", "expected"),
    [
        ({"speed": 0.0}, 120, {"slow"}),
        ({"speed": 1 / 3}, 160, {"slow"}),  # a third of the real speed
        ({"grey": True}, 60, {"grey"}),
        ({"places": 1}, 320, {"alike"}),  # one position for every video of a caption
    ],
)
def test_what_goes_wrong_in_training_is_told(
    tmp_path: Path, healthy: dict[str, Tensor], broken: dict[str, Any], steps: int, expected: set[str]
) -> None:
    """What the generator learns moves slowly, is grey, or always the same: the watch compares with real clips."""
    student = model(0)
    student.load_state_dict(healthy)
    options = flow_options(steps, ema=0.9).model_copy(update={"decay": 1.0})
    raised = trained(student, clips(48, 0, **broken), options, tmp_path, 0, before=True)
    assert set(raised) - {"static"} == expected  # what crawls may come to stand still


class Damaged(torch.nn.Module):
    """A denoiser that knows what to make: from any noise it leads to its clips, damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.clean, self.damage = clips(18, 7).x0(range(18)), "none"

    def forward(self, x: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:
        x0 = self.damaged(self.clean[: len(x)])
        return (x - x0) / sigma_B[:, None, None, None, None]

    def damaged(self, x0: Tensor) -> Tensor:
        first, bright = x0[:, :, :1], x0.amax(dim=1, keepdim=True).expand_as(x0)
        return {
            "none": lambda: x0,
            "static": lambda: first.expand_as(x0),
            "slow": lambda: x0[:, :, [0, 0, 0, 1]],
            "grey": lambda: bright + 0.1 * (x0 - bright),
            "blank": lambda: 0.3 * x0,
            "alike": lambda: x0[::2].repeat_interleave(2, dim=0),
        }[self.damage]()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("none", set()),
        ("static", {"static", "slow"}),
        ("slow", {"slow"}),
        ("grey", {"grey"}),
        ("blank", {"blank", "grey"}),
        ("alike", {"alike"}),
    ],
)
def test_every_way_to_collapse_has_its_alarm(tmp_path: Path, damage: str, expected: set[str]) -> None:
    student, alarms = Damaged(), Alarms(context_in(tmp_path))
    watch: Any = FlowOptions(watch=WATCH).watch
    sampler = Watcher(
        student, words(), Flow(3.0, 4, 1.0), clips(9, 100), watch, lambda x: x, seed=0, world=World(), trained=True
    )
    guards = sampler.guards(alarms)
    student.damage = damage
    for step in (20, 40):
        assert set(alarms.raised) == set()
        guards.look(step, sampler.measure())
    assert set(alarms.raised) == expected


@pytest.mark.parametrize(
    ("looks", "alarm"),
    [
        ([(0.5, 0.5), (0.6, 0.5), (0.7, 0.5)], True),  # up and flat
        ([(0.5, 0.5), (0.6, 0.4), (0.7, 0.3)], True),  # up and down
        ([(0.5, 0.5), (0.6, 0.6), (0.7, 0.6), (0.8, 0.55)], True),  # first both, then the critic alone
        ([(0.5, 0.5), (0.6, 0.6), (0.7, 0.7), (0.8, 0.65)], False),  # one look is none
        ([(0.5, 0.5), (0.4, 0.4), (0.3, 0.3)], False),  # both down: nobody is deceived
        ([(0.5, 0.5), (0.505, 0.4), (0.509, 0.3)], False),  # the critic has not risen
        ([(0.5, 0.5), (0.6, 0.4), (0.7, 0.51)], False),
    ],
)
def test_a_critic_that_rises_alone_is_an_alarm(tmp_path: Path, looks: list[tuple[float, float]], alarm: bool) -> None:
    guards = JudgeGuards(Alarms(context_in(tmp_path)))
    for step, (critic, judge) in enumerate(looks):
        guards.look(step, {"critic": critic, "judge": judge})
    guards.look(99, {"loss": 1.0})
    assert set(guards.alarms.raised) == ({"hacked"} if alarm else set())


class Scripted(Validator):
    """What a critic and a judge say after so many steps."""

    figures: ClassVar = {0: (0.5, 0.5), 2: (0.6, 0.7), 4: (0.65, 0.6), 6: (0.7, 0.6)}

    def __init__(self) -> None:
        """It looks at nothing."""

    def measure(self, objective: Any, step: int) -> dict[str, float]:
        critic, judge = self.figures[step]
        return {"loss": 1 - judge, "critic": critic, "judge": judge}


def test_what_guards_have_seen_survives_a_kill(tmp_path: Path) -> None:
    """The judge's best came before it; of the looks since then one alone would be no alarm."""
    options = flow_options(6, validation={"every": 2, "samples": 9}, watch=None, keep_checkpoints=4)

    def run() -> Alarms:
        alarms = Alarms(context_in(tmp_path))
        objective = FlowObjective(options, model(0), words(), None)
        objective.phases = (replace(objective.phases[-1], shown=("critic", "judge")),)
        fit(objective, clips(48, 0), options, alarms.context, Monitors(options, alarms, Scripted(), None))
        return alarms

    assert list(run().raised) == ["hacked"]
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        if checkpoint.name != "step-00000002":
            shutil.rmtree(checkpoint)
    (after,) = run().raised.values()
    assert "step 6: the critic is being deceived: it went from 0.600 to 0.700" in str(after)


def test_a_pinned_accuracy_is_counted_across_a_kill(tmp_path: Path) -> None:
    before, alarms = CurveGuards(Alarms(context_in(tmp_path)), sure_steps=3), Alarms(context_in(tmp_path))
    after = CurveGuards(alarms, sure_steps=3)
    for step in range(2):
        before.look(step, {"accuracy": 1.0})
    after.remember(json.loads(json.dumps(before.memory())))
    after.look(2, {"accuracy": 1.0})
    assert list(alarms.raised) == ["sure"]


@pytest.mark.parametrize(("patience", "ends"), [(None, {30: False}), (2, {15: False, 19: False, 20: True, 30: True})])
def test_a_step_ends_where_no_validation_was_better_for_long_enough(
    tmp_path: Path, patience: int | None, ends: dict[int, bool]
) -> None:
    options = FlowOptions(steps=50, validation={"every": 5, "result": "best", "patience": patience})
    looks = Monitors(options, Alarms(context_in(tmp_path)), None, None)
    assert {step: looks.ends(10, step) for step in ends} == ends


def test_patience_goes_with_the_best() -> None:
    with pytest.raises(ValidationError, match="add 'result: best'"):
        FlowOptions(validation={"every": 5, "patience": 2})


def test_validation_is_logged_and_the_best_is_the_result(tmp_path: Path) -> None:
    """Rates so high that the model gets worse: the result is that of the best checkpoint."""
    student, given = model(0), clips(48, 0)
    validation = {"every": 5, "samples": 9, "result": "best"}
    options = flow_options(40, validation=validation)
    trained(student, given, options, tmp_path, 0, before=False)
    lines = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    losses = {line["step"] + 1: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert list(losses) == list(range(5, 41, 5))
    best = min(losses, key=lambda step: losses[step])
    assert f"step-{best:08d}" in [path.name for path in (tmp_path / "checkpoints").iterdir()]
    objective = FlowObjective(options, student, words(), None)
    with torch.no_grad():
        found = Validator(clips(9, 100), 9, 9, 0, World(), bf16=False).measure(objective, 40)["loss"]
    assert found == pytest.approx(losses[best], rel=1e-4)


def test_a_held_out_loss_that_is_not_finite_is_an_error_and_never_the_best(tmp_path: Path) -> None:
    held_out = clips(9, 100)
    x0 = held_out.x0(range(9)).numpy().copy()
    x0[4] = float("nan")
    broken = Samples(x0, held_out.captions(range(9)), held_out.tokens(range(9)), pixels=False)
    options = FlowOptions(steps=4, batch=16, validation={"every": 2, "samples": 9, "result": "best"})
    looks = Monitors(options, Alarms(context_in(tmp_path)), Validator(broken, 9, 9, 0, World(), bf16=False), None)
    with pytest.raises(UserError, match="the held-out loss is nan after 2 steps. Lower the learning rate, or look for"):
        fit(FlowObjective(options, model(0), words(), None), clips(48, 0), options, context_in(tmp_path), looks)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_the_held_out_samples_in_parts_as_small_as_in_training(size: int) -> None:
    """Seven samples, two at a time: as many parts everywhere, each sample once; who has none left weighs nothing."""
    parts = [list(Validator(clips(9, 100), 7, 2, 0, World(rank, size), bf16=False)._parts()) for rank in range(size)]
    assert len({len(mine) for mine in parts}) == 1
    assert sorted(i for mine in parts for index, weight in mine for i in index[:weight]) == list(range(7))
    assert all(weight in (0, len(index)) and 1 <= len(index) <= 2 for mine in parts for index, weight in mine)


@pytest.mark.parametrize(
    ("model", "kinds", "expected"),
    [
        ({"use": "video_dit", "preset": "tiny"}, ["base", "latent"], False),
        ({"use": "video_dit", "preset": "tiny"}, ["base", "latent", "distill"], True),
        ({"use": "diffusers", "class_name": "LTXVideoTransformer3DModel"}, ["base", "latent"], False),
        ({"use": "diffusers", "path": "ltx-video/"}, ["base", "latent"], True),
    ],
)
def test_a_model_from_a_folder_is_held_to_what_it_can_do(
    model: dict[str, str], kinds: list[str], expected: bool
) -> None:
    """Guards of a model that was trained elsewhere are those of one trained here: slow motion is an alarm."""
    part = make_part("model", model, installed())
    parts = {"model": {"plugin": part.name, "kind": "model", "options": part.as_data()}}
    assert is_trained([{"kind": kind, "parts": parts if kind == "base" else {}} for kind in kinds]) is expected


@pytest.mark.parametrize(("frozen", "count"), [(True, 0), (False, 3)])
def test_captions_of_a_frozen_encoder_are_encoded_once(frozen: bool, count: int) -> None:
    """A large encoder takes longer than the samples: theirs are kept; one in training is asked at every look."""
    text, asked = words(), list[int]()
    text.requires_grad_(not frozen)
    inner = text.cond
    text.cond = lambda captions: (asked.append(len(captions)), inner(captions))[1]
    watch: Any = FlowOptions(watch=WATCH).watch
    sampler = Watcher(
        model(0), text, Flow(3.0, 2, 1.0), clips(9, 100), watch, lambda x: x, seed=0, world=World(), trained=False
    )
    looks = [sampler.measure() for _ in range(3)]
    assert looks[0] == looks[1] == looks[2]
    assert asked == [6] * count
