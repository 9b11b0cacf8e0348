"""The reader of moving shapes: right on ground truth through mp4, and worse the worse the video."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dit_compress.data.samples import to_video
from dit_compress_plugins.data_shapes import ShapesOptions
from dit_compress_plugins.data_shapes.data import Shapes
from dit_compress_plugins.data_shapes.render import render
from dit_compress_plugins.data_shapes.world import NUMBERS, TINY, Scene, Thing, spec
from dit_compress_plugins.evaluate_shapes import CounterOptions
from dit_compress_plugins.evaluate_shapes.counter import VOCABULARY, ShapesCounter, wanted_of
from dit_compress_plugins.evaluate_shapes.reader import read
from dit_compress_plugins.evaluate_shapes.scores import ATTRIBUTES, diversity, floors, score, summarise

SIZE = (96, 96)
RED = Thing("circle", "red", "large", "left", "fast", start=(30.0, 60.0))
BLUE = Thing("triangle", "blue", "small", "down", "slow", start=(60.0, 25.0))
TWO = Scene("white", (RED, BLUE))


def drawn(scene: Scene) -> np.ndarray:
    return render(scene, 17, SIZE)


def scored(video: np.ndarray, scene: Scene = TWO) -> dict[str, float]:
    return score(video, scene.truth(SIZE))


@pytest.mark.parametrize("size", [(96, 96), (64, 96)])
def test_ground_truth_through_mp4_is_read_right(tmp_path: Path, size: tuple[int, int]) -> None:
    count = 160 if size == (96, 96) else 20
    shapes = Shapes(ShapesOptions(num_clips=count, num_test=1, size=size, seed=5))
    shapes.prepare(tmp_path)
    summary = summarise([score(clip.pixels(), clip.truth) for clip in shapes.clips(tmp_path, "train")])
    for name in (*ATTRIBUTES, "exact_match", "attribute_accuracy"):
        assert summary[name] >= 0.999, name
    assert summary["displacement_ratio"] == pytest.approx(1.0, abs=0.01)
    assert summary["flicker"] < 0.005


@pytest.mark.parametrize(("kind", "amounts"), [("noise", (0, 30, 50, 60, 80, 120)), ("blur", (0, 2, 4, 6, 8, 12))])
def test_scores_fall_as_the_video_gets_worse(kind: str, amounts: tuple[float, ...]) -> None:
    shapes = Shapes(ShapesOptions())
    scenes = [shapes.scene("train", index) for index in range(12)]
    noise = np.random.default_rng(0).standard_normal((17, *SIZE, 3))

    def worse(video: np.ndarray, amount: float) -> np.ndarray:
        smooth = (0, amount, amount, 0)
        bad = video + amount * noise if kind == "noise" else gaussian_filter(video.astype(np.float32), smooth)
        return np.clip(np.rint(bad), 0, 255).astype(np.uint8)

    curve = [
        summarise([scored(worse(drawn(scene), amount), scene) for scene in scenes])["attribute_accuracy"]
        for amount in amounts
    ]
    assert curve[0] == 1.0
    assert all(later <= earlier for earlier, later in zip(curve, curve[1:], strict=False)), curve
    assert curve[-1] < 0.6


def test_positions_by_hand() -> None:
    reading = read(drawn(TWO), TWO.truth(SIZE)["world"])
    tracks = {track.colour: track for track in reading.tracks}
    assert reading.background == "white"
    assert set(tracks) == {"red", "blue"}
    assert np.allclose(tracks["red"].centre_F2[[0, -1]], [(30, 60), (30, 40)], atol=0.2)
    assert np.allclose(tracks["red"].displacement, (0, -20), atol=0.2)
    assert np.allclose(tracks["blue"].displacement, (8, 0), atol=0.2)
    assert np.sqrt(tracks["blue"].area_F).mean() == pytest.approx(26, rel=0.08)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"shape": "square"}, "shape"),
        ({"colour": "yellow"}, "colour"),
        ({"size": "small"}, "size"),
        ({"direction": "right"}, "direction"),
        ({"speed": "slow"}, "speed"),
    ],
)
def test_one_wrong_attribute_costs_itself_alone(change: dict[str, str], wrong: str) -> None:
    other = Scene("white", (Thing(**{**vars(RED), **change}), BLUE))
    scores = scored(drawn(other))
    assert scores[wrong] == 0.5  # one object of two
    assert all(scores[name] == 1.0 for name in ATTRIBUTES if name != wrong)
    assert scores["exact_match"] == 0.0


def test_a_missing_object_has_everything_wrong() -> None:
    scores = scored(drawn(Scene("white", (RED,))))
    assert scores["count"] == 0.0
    assert [scores[name] for name in ("shape", "colour", "size", "direction", "speed")] == [0.5] * 5
    assert scores["displacement_ratio"] == pytest.approx(0.5, abs=0.01)


def test_an_object_too_many_costs_the_count_alone() -> None:
    scores = scored(drawn(TWO), Scene("white", (BLUE,)))
    assert scores["count"] == 0.0
    assert all(scores[name] == 1.0 for name in ATTRIBUTES if name != "count")


def test_another_background() -> None:
    assert scored(drawn(Scene("grey", TWO.things)))["background"] == 0.0


def test_a_still_video_has_neither_direction_nor_speed() -> None:
    scores = scored(np.repeat(drawn(TWO)[:1], 17, axis=0))
    assert scores["displacement_ratio"] == pytest.approx(0.0, abs=1e-9)
    assert scores["direction"] == scores["speed"] == 0.0
    assert scores["shape"] == scores["size"] == scores["count"] == 1.0
    backwards = scored(drawn(TWO)[::-1])
    assert backwards["displacement_ratio"] == pytest.approx(-1.0, abs=0.01)
    assert backwards["direction"] == 0.0
    assert backwards["speed"] == 1.0


def test_an_object_missing_for_some_frames_is_one_object() -> None:
    video = drawn(TWO)
    video[7:10] = drawn(Scene("white", (BLUE,)))[7:10]
    assert scored(video)["exact_match"] == 1.0


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_or_strange_video_is_read_without_error(value: int) -> None:
    scores = scored(np.full((17, *SIZE, 3), value, dtype=np.uint8))
    assert all(scores[name] == 0.0 for name in ATTRIBUTES if name != "background")
    purple = np.full((17, *SIZE, 3), (160, 0, 160), dtype=np.uint8)
    assert scored(purple)["background"] == 0.0


def test_flicker_follows_the_objects() -> None:
    still = scored(drawn(TWO))["flicker"]
    assert still < 1e-3  # though both objects move
    brightness = np.where(np.arange(17) % 2, 0, 10)[:, None, None, None]
    flickering = np.clip(drawn(TWO).astype(int) - brightness, 0, 255).astype(np.uint8)
    assert scored(flickering)["flicker"] == pytest.approx(10 / 255, rel=0.05)


def test_diversity_by_hand() -> None:
    video = drawn(TWO)
    assert diversity(video[None]) == 0.0
    assert diversity(np.stack([video, video])) == 0.0
    black, white = np.zeros_like(video), np.full_like(video, 255)
    assert diversity(np.stack([black, white])) == 0.25  # the variance of 0 and 1


def test_summary_by_hand() -> None:
    right, wrong = ({**dict.fromkeys(ATTRIBUTES, value), "exact_match": value} for value in (1.0, 0.0))
    mixed = {**right, "shape": 0.5, "exact_match": 0.0}
    summary = summarise([right, wrong, mixed])
    assert summary["shape"] == 0.5
    assert summary["exact_match"] == pytest.approx(1 / 3)
    assert summary["attribute_accuracy"] == pytest.approx((6 * 2 / 3 + 0.5) / 7)
    captions = np.array([1.0, 0.0, 6.5 / 7])  # of each caption; one video of each
    assert summary["attribute_accuracy_error"] == pytest.approx(captions.std(ddof=1) / np.sqrt(3))


def test_videos_of_one_caption_are_one_observation() -> None:
    right, wrong = ({**dict.fromkeys(ATTRIBUTES, value), "exact_match": value} for value in (1.0, 0.0))
    summary = summarise([right, wrong, right, right], each=2)  # captions at 1/2 and 1
    assert summary["attribute_accuracy"] == 0.75
    assert summary["attribute_accuracy_error"] == pytest.approx(np.sqrt(2) / 4 / np.sqrt(2))
    assert "attribute_accuracy_error" not in summarise([right, wrong], each=2)


def test_floors_by_hand() -> None:
    """Three truths of one object each, that share 6, 1 and 0 of the seven attributes (the count always)."""
    first = Scene("white", (RED,)).truth(SIZE)
    second = Scene("white", (Thing("circle", "red", "large", "left", "slow"),)).truth(SIZE)
    third = Scene("black", (Thing("square", "blue", "small", "up", "slow"),)).truth(SIZE)
    # agreement: first-second 6/7, first-third 1/7 (count), second-third 2/7 (count, speed)
    found = floors([first, second, third])
    assert found["chance"] == pytest.approx((6 + 1 + 2) / 7 / 3)
    assert found["best_constant"] == pytest.approx((6 + 2) / 7 / 2)
    assert floors([first]) == {}


def test_floors_are_what_the_reader_gives_for_those_clips() -> None:
    shapes = Shapes(ShapesOptions())
    scenes = [shapes.scene("test", index) for index in range(4)]
    found = [
        summarise([scored(drawn(shown), wanted)])["attribute_accuracy"]
        for shown in scenes
        for wanted in scenes
        if shown is not wanted
    ]
    assert floors([scene.truth(SIZE) for scene in scenes])["chance"] == pytest.approx(np.mean(found))


# ------------------------------------------------------------------ counts


def test_the_counters_vocabulary_is_the_worlds() -> None:
    world = spec(SIZE, TINY)
    speeds = {name: round(share * 96, 3) for name, share in VOCABULARY["speeds"].items()}
    assert world == {**VOCABULARY, "speeds": speeds, "sizes": {"tiny": 18.0}}
    assert CounterOptions().smallest == TINY["tiny"]
    assert [wanted_of(f"{word} circles", world)[0].number for word in NUMBERS] == [1, 2, 3, 4]


def test_what_a_caption_numbers() -> None:
    caption = "Three tiny red circles moving left and 2 squares beside a green triangle"
    found = wanted_of(caption, VOCABULARY)
    assert [(each.number, each.colour, each.shape) for each in found] == [(3, "red", "circle"), (2, None, "square")]
    assert [caption[slice(*each.span)] for each in found] == ["circles", "squares"]
    assert wanted_of(TWO.caption(), VOCABULARY) == [], "an article is no number"
    assert wanted_of("0 circles, one ring", VOCABULARY) == []


def test_what_counts_is_of_the_colour_and_of_no_other_shape() -> None:
    tracks = [
        SimpleNamespace(colour=colour, shape=shape)
        for colour in ("red", "blue")
        for shape in ("circle", None, "square")
    ]
    reading: Any = SimpleNamespace(tracks=tracks)
    red, any_colour = wanted_of("three red circles, 2 squares", VOCABULARY)
    assert [(each.colour, each.shape) for each in red.among(reading)] == [("red", "circle"), ("red", None)]
    assert [each.shape for each in any_colour.among(reading)] == [None, "square"] * 2


@pytest.mark.parametrize("size", [(96, 96), (64, 64)])
def test_objects_that_are_alike_are_counted_right(size: tuple[int, int]) -> None:
    shapes, counter = Shapes(ShapesOptions(alike=4, size=size)), ShapesCounter(CounterOptions())
    scores = []
    for index in range(40):
        scene = shapes.scene("train", index)
        video, caption = render(scene, 5, size), scene.caption()
        scores.append(score(video, scene.truth(size), caption))
        ((found,),) = counter(to_video(torch.from_numpy(video[None])), [caption])
        assert found.wanted == len(scene.things)
        assert len(found.masks_NFYX) == len(scene.things)
        covered = (video != render(Scene(scene.background, ()), 5, size)).any(-1)
        mask = np.any(found.masks_NFYX, axis=0)
        assert (mask & covered).sum() == mask.sum() > 0.75 * covered.sum()
    summary = summarise(scores)
    assert summary["exact_count"] == summary["attribute_accuracy"] == summary["exact_match"] == 1.0
    assert summary["exact_count_error"] == summary["count_distance"] == 0.0


def test_counts_by_hand() -> None:
    """Four squares of which three are wanted; none where three are; a caption without a number has none to judge."""
    places = [(20, 20), (20, 70), (70, 20), (70, 70)]
    things = tuple(Thing("square", "red", "tiny", "left", "slow", start) for start in places)
    video, truth = drawn(Scene("black", things)), Scene("black", things[:3]).truth(SIZE)
    caption = Scene("black", things[:3]).caption()
    assert caption == "three tiny red squares moving left slowly on a black background"
    many, none = score(video, truth, caption), score(drawn(Scene("black", ())), truth, caption)
    assert (many["exact_count"], many["count_distance"]) == (0.0, 1.0)
    assert (none["exact_count"], none["count_distance"]) == (0.0, 3.0)
    right = score(drawn(Scene("black", things[:3])), truth, caption)
    summary = summarise([many, scored(drawn(TWO)), right])
    assert (summary["exact_count"], summary["exact_count_error"]) == (0.5, 0.5)
    assert summary["count_distance"] == 0.5
    assert "exact_count" not in summarise([scored(drawn(TWO))])
