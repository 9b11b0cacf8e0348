"""The critic of moving shapes: questions, damages and logits by hand; trained once, kept, seen by other processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from processes import together
from safetensors.torch import load_file, save_file
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.data.clips import Clip
from dit_compress.plugin.options import Part, Plugin
from dit_compress.testing.steps import DrawnClips, DrawnOptions, tiny_context
from dit_compress_plugins.data_shapes.render import render
from dit_compress_plugins.data_shapes.world import Scene, Thing, draw_scene, spec
from dit_compress_plugins.distill_reward.rewards import need_gradients
from dit_compress_plugins.reward_shapes.critic import Critic, Network, answers_of, questions_of
from dit_compress_plugins.reward_shapes.damage import KINDS, damaged
from dit_compress_plugins.reward_shapes.reward import opposites

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE = (64, 64)
RED = Thing("square", "red", "large", "left", "slow", (32.0, 32.0))
BLUE = Thing("circle", "blue", "small", "left", "fast")
TRUTH = Scene("black", (RED,)).truth(SIZE)
QUESTIONS = questions_of(TRUTH["world"])
OPPOSITE = opposites(TRUTH["world"]["directions"])


@dataclass(frozen=True)
class DrawnScene(Clip):
    """A clip of the world, drawn in memory."""

    scene: Any = None

    def pixels(self) -> np.ndarray:
        return render(self.scene, self.frames, self.size)

    def identity(self) -> list[Any]:
        return [str(self.path)]


class Scenes(DrawnClips):
    """Twelve scenes of one object to train on, four held out."""

    def clips(self, _cache: Path, split: Any) -> Sequence[Clip]:
        how = {"size": SIZE, "max_objects": 1, "test_fraction": 0.2}
        scenes = [draw_scene(0, split, index, **how) for index in range(12 if split == "train" else 4)]
        return [
            DrawnScene(Path(f"{split}{index}.mp4"), scene.caption(), scene.truth(SIZE), 9, SIZE, scene=scene)
            for index, scene in enumerate(scenes)
        ]


def context_in(folder: Path) -> Any:
    plugin = Plugin(name="scenes", options=DrawnOptions, load=f"{__name__}:Scenes")
    data = Part("data", plugin, DrawnOptions(frames=9, size=SIZE))
    return tiny_context(folder, data=data)


def yes(answers: Sequence[bool]) -> set[tuple[str, str]]:
    return {question for question, answer in zip(QUESTIONS, answers, strict=True) if answer}


# ------------------------------------------------------------------ by hand


def test_questions_are_the_worlds_vocabulary_and_the_count() -> None:
    assert len(QUESTIONS) == 3 + 4 + 3 + 2 + 4 + 2 + 2
    assert ("colour", "yellow") in QUESTIONS
    assert QUESTIONS[-2:] == [("count", "1"), ("count", "2")]


def test_a_scene_answers_for_all_of_its_objects() -> None:
    expected = {("background", "black"), ("colour", "red"), ("shape", "square"), ("size", "large"), ("speed", "slow")}
    expected |= {("direction", "left"), ("count", "1")}
    assert yes(answers_of(TRUTH, QUESTIONS)) == expected
    two = yes(answers_of(Scene("grey", (RED, BLUE)).truth(SIZE), QUESTIONS))
    assert {value for name, value in two if name in ("colour", "count", "direction")} == {"red", "blue", "2", "left"}


def test_an_attribute_is_right_where_all_its_questions_are() -> None:
    critic = Critic(Network(2, len(QUESTIONS)), QUESTIONS, {"a": TRUTH})
    logits = torch.full((1, len(QUESTIONS)), -50.0)
    logits[0, QUESTIONS.index(("speed", "slow"))] = math.log(3)  # p = 0.75
    logits[0, QUESTIONS.index(("speed", "fast"))] = math.log(0.25)  # p = 0.2 that it is seen, 0.8 that it is not
    found = critic.judged(logits, critic.expected(["a"]))
    place = critic.aspects.index("speed")
    assert float(found[0, place]) == pytest.approx(math.log(0.6 / 0.4))
    assert float(found[0, critic.aspects.index("colour")]) == pytest.approx(-50.0, rel=1e-4)
    right = 100 * (2 * critic.expected(["a"]) - 1)
    assert critic.judged(right, critic.expected(["a"])).min() > 10, "as sure as it can say, and finite"
    sure = (right / 5).requires_grad_()
    (gradient,) = torch.autograd.grad(critic.judged(sure, critic.expected(["a"])).sum(), sure)
    assert gradient.abs().min() > 0.1, "a critic that is sure of all of its answers can still be taught by"
    assert critic.aspects == ("background", "colour", "shape", "size", "direction", "speed", "count")
    with pytest.raises(UserError, match="the critic knows no scene of the caption 'b'"):
        critic.expected(["a", "b"])


@pytest.mark.parametrize("kind", KINDS)
def test_damage_and_what_is_seen_of_it(kind: str) -> None:
    video = torch.from_numpy(render(Scene("black", (RED,)), 9, SIZE)).permute(3, 0, 1, 2) / 127.5 - 1
    before = answers_of(TRUTH, QUESTIONS)
    found, answers = damaged(video, before, kind, QUESTIONS, OPPOSITE, seed=3)
    assert found.shape == video.shape
    lost, gained = yes(before) - yes(answers), yes(answers) - yes(before)
    of_object = {question for question in yes(before) if question[0] != "background"}
    moves = {("direction", "left"), ("speed", "slow")}
    assert lost == {
        "still": moves, "grey": {("colour", "red")}, "coarse": {("shape", "square")}, "empty": of_object,
        "faint": of_object, "noisy": yes(before), "backwards": {("direction", "left")},
    }[kind]  # fmt: skip
    assert gained == ({("direction", "right")} if kind == "backwards" else set())
    if kind == "still":
        assert torch.equal(found[:, 0], found[:, 8])
    if kind == "backwards":
        assert torch.equal(found[:, 0], video[:, 8])
    if kind == "grey":
        assert torch.equal(found[0], found[2])
    if kind == "empty":
        assert found.unique().numel() == 1
    if kind == "faint":
        spread = [float(each.max() - each.min()) for each in (video, found)]
        assert spread[1] == pytest.approx(spread[0] / 10, rel=1e-4)
    if kind == "coarse":
        assert len(found[0, 0].unique()) <= 36


def test_opposites() -> None:
    assert opposites(spec(SIZE)["directions"]) == {"left": "right", "right": "left", "up": "down", "down": "up"}


# ------------------------------------------------------------------ trained once


def test_a_critic_is_trained_once_is_the_same_again_and_answers_differentiably(tmp_path: Path) -> None:
    options = {"steps": 3, "batch": 4, "width": 2}
    context = context_in(tmp_path / "one")
    critic = part("reward", "shapes", **options).create(context)
    assert "the critic is right about" in context.notes[0]
    assert "warning, a critic that is often wrong teaches what is wrong" in context.notes[1]
    (file,) = (tmp_path / "one").glob("reward-shapes-*.safetensors")
    time = file.stat().st_mtime_ns
    again = part("reward", "shapes", **options).create(context)
    assert file.stat().st_mtime_ns == time, "it was read"
    torch.rand(3)
    other = part("reward", "shapes", **options).create(context_in(tmp_path / "two"))
    clips = context.clips("test")[:2]
    video = torch.stack([torch.from_numpy(clip.pixels()).permute(3, 0, 1, 2) / 127.5 - 1 for clip in clips])
    captions = [clip.caption for clip in clips]
    found = [each(video, captions) for each in (critic, again, other)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    need_gradients("shapes", critic, video, captions)
    part("reward", "shapes", **{**options, "seed": 1}).create(context)
    assert len(list((tmp_path / "one").glob("reward-shapes-*.safetensors"))) == 2


def made_on(world: Any, folder: Path) -> None:
    context = context_in(folder)
    context.world = world
    network = part("reward", "shapes", steps=1, batch=2, width=2).create(context).network
    save_file(dict(network.state_dict()), folder / f"process-{world.rank}.safetensors")
    assert bool(context.notes) == (world.rank == 0), "the first process trains, the other reads"


def test_two_processes_have_the_critic_of_the_first(tmp_path: Path) -> None:
    together(made_on, tmp_path)
    one, other = (load_file(tmp_path / f"process-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_clips_without_truth_are_refused(tmp_path: Path) -> None:
    for name in ("shapes", "reader"):
        with pytest.raises(
            UserError, match=r"the clip has no ground truth.* Use clips written by 'data: \{use: shapes\}'"
        ):
            part("reward", name).create(tiny_context(tmp_path))


# ------------------------------------------------------------------ the judge


def test_the_reader_judges_by_the_share_of_each_attribute(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    judge = part("reward", "reader").create(context)
    clips = context.clips("test")[:2]
    video = torch.stack([torch.from_numpy(clip.pixels()).permute(3, 0, 1, 2) / 127.5 - 1 for clip in clips])
    captions = [clip.caption for clip in clips]
    right = torch.sigmoid(judge(video, captions))
    torch.testing.assert_close(right, torch.ones(2, 7))
    assert judge.aspects == ("count", "shape", "colour", "size", "direction", "speed", "background")
    blank = torch.sigmoid(judge(video[:, :, :1, :1, :1].expand_as(video), captions))
    torch.testing.assert_close(blank, torch.tensor([[0.0] * 6 + [1.0]] * 2), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="no clip has the caption 'who knows', by which a video could be judged"):
        judge(video[:1], ["who knows"])
