"""Counting: losses and masks by hand, right counts left alone, what changes where, the counter of shapes, refusals."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from toy import Pixels, words

from dit_compress.cli.generate import named
from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams
from dit_compress.data.clips import Clip
from dit_compress.model.flow import Flow, euler
from dit_compress.model.scene import Scene, shown, summed_up
from dit_compress.model.text import Captions
from dit_compress.plugin.options import Options, Part, Plugin
from dit_compress.plugin.registry import Registry, installed
from dit_compress.plugin.sources import Source
from dit_compress.recipe import make_part
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import DrawnClips, DrawnOptions, tiny_bundle, tiny_context
from dit_compress_plugins.data_shapes.world import draw_scene
from dit_compress_plugins.evaluate_shapes import ShapesEvaluationOptions
from dit_compress_plugins.evaluate_shapes.step import ShapesEvaluation
from dit_compress_plugins.sampler_count import CountOptions
from dit_compress_plugins.sampler_count.attention import (
    attention_loss,
    blurred,
    cross_attentions,
    normalised,
    word_maps,
)
from dit_compress_plugins.sampler_count.counters import Counter, CounterPart
from dit_compress_plugins.sampler_count.masks import emptiest, movement, smallest, squares, to_latent, to_tokens
from dit_compress_plugins.sampler_count.sampler import CountSampler, Task, by_turn

SIZE = (2, 4, 4)
SIGMAS = Flow(3.0).sigmas(6)
CAPTION = "three red circle"


class Cells(Pixels):
    """A codec of one pixel a cell."""

    frame_rule = None


@dataclass
class Seen:
    span: tuple[int, int]
    wanted: int
    masks_NFYX: list[np.ndarray]


def blocks(*places: tuple[int, int], side: int = 2) -> list[np.ndarray]:
    """Squares in both frames of 4 × 4 pixels."""
    masks = np.zeros((len(places), *SIZE), dtype=bool)
    for mask, (y, x) in zip(masks, places, strict=True):
        mask[:, y : y + side, x : x + side] = True
    return list(masks)


class Told:
    """A counter that says what it was told, by caption; the second time it is asked, what comes after."""

    def __init__(self, *answers: dict[str, list[Seen]]) -> None:
        self.answers, self.asked = list(answers), []

    def __call__(self, video: torch.Tensor, captions: Any) -> list[list[Seen]]:
        self.asked.append((tuple(video.shape), list(captions)))
        return [self.answers[min(len(self.asked), len(self.answers)) - 1].get(caption, []) for caption in captions]


class ToldPart:
    def __init__(self, options: Any) -> None:
        self.options = options

    def create(self) -> Told:
        return Told({})


def sampler(*answers: dict[str, list[Seen]], **options: Any) -> CountSampler:
    shapes = make_part("counter", "shapes", installed())
    plugin = Plugin(name="told", options=type(shapes.options), load=f"{__name__}:ToldPart")
    made = CountSampler(CountOptions(counter=Part("counter", plugin, shapes.options), **options))
    made.counter = Told(*answers)
    return made


@pytest.fixture(scope="module")
def text() -> Captions:
    return words()


def drawn(made: CountSampler, text: Captions, captions: list[str], guidance: float = 2.0) -> tuple[Any, Any, Scene]:
    """What the sampler gives, what plain sampling gives of the same noise, and the scene."""
    denoiser, noise = tiny_denoiser("video_dit"), Streams(0, 0, range(len(captions))).normal("n", (8, *SIZE))
    scene = Scene(Cells(), captions, text)
    with torch.no_grad():
        plain = euler(denoiser, noise, text.cond(captions), SIGMAS, guidance)
        found = made.sample(denoiser, noise, text.cond(captions), SIGMAS, guidance, scene)
    return found, plain, scene


# ------------------------------------------------------------------ by hand


def test_the_loss_of_a_word_by_hand() -> None:
    """The two largest of 0.1, 0.4, 0.2, 0.3 have the mean 0.35: to be deleted, and twice that negative to be added."""
    given, everywhere = torch.tensor([0.1, 0.4, 0.2, 0.3]), torch.ones(4, dtype=torch.bool)
    assert float(attention_loss(given, everywhere, 0.5, 1)) == pytest.approx(0.35)
    assert float(attention_loss(given, everywhere, 0.5, -2)) == pytest.approx(-0.7)
    inside = torch.tensor([True, False, True, False])
    assert float(attention_loss(given, inside, 1.0, 1)) == pytest.approx(0.15)
    assert float(attention_loss(given, inside, 0.1, 1)) == pytest.approx(0.2), "one value at least"


def test_maps_by_hand() -> None:
    """Two blocks of two heads: sums 1, 0 and 0.2, 0.8 over heads, mean 0.6, 0.4; padding gets nothing."""
    taken = {
        "a": torch.tensor([[[[0.5, 0.0, 9.0]], [[0.5, 0.0, 9.0]]]]),
        "b": torch.tensor([[[[0.2, 0.5, 9.0]], [[0.0, 0.3, 9.0]]]]),
    }
    found = word_maps(taken, torch.tensor([[1.0, 1.0, 0.0]]))
    assert found[0, 0].tolist() == pytest.approx([1 / (1 + np.exp(-0.2)), 1 / (1 + np.exp(0.2)), 0.0])
    spike = torch.zeros(1, 3, 3)
    spike[0, 1, 1] = 1.0
    side = np.exp(-2.0)  # a distance of one at a deviation of one half
    assert float(blurred(spike, 0.5)[0, 1, 1]) == pytest.approx(1 / (1 + 2 * side) ** 2)
    assert float(blurred(spike, 0.5)[0, 0, 1]) == pytest.approx(side / (1 + 2 * side) ** 2)
    assert torch.equal(blurred(spike, 0.0), spike)


def test_a_gradient_is_normalised_inside_its_mask() -> None:
    gradient, mask = torch.tensor([[3.0, 4.0, 9.0]]), torch.tensor([True, True, False])
    found = normalised(gradient, mask, -2.0)
    assert found.tolist()[0] == pytest.approx([2 * 3 / 12.5**0.5, 2 * 4 / 12.5**0.5, 0.0])
    assert not normalised(torch.zeros(1, 3), mask, 1.0).any(), "and zero stays zero"


def test_the_smallest_objects_go_all_of_them_where_none_is_wanted() -> None:
    """The smallest is among them: released code skips it."""
    large, small, middle = blocks((0, 0), side=3)[0], blocks((3, 3), side=1)[0], blocks((0, 2))[0]
    assert np.array_equal(smallest([large, small, middle], 1), small)
    assert np.array_equal(smallest([large, small, middle], 2), small | middle)
    assert np.array_equal(smallest([large, small, middle], 3), large | small | middle)


def test_squares_stand_where_nothing_is_and_move_as_the_smallest_does() -> None:
    mask = np.zeros((3, 40, 40), dtype=bool)
    for frame in range(3):
        mask[frame, 4:14, 2 + 3 * frame : 12 + 3 * frame] = True
    assert movement(mask).tolist() == [[0, -3], [0, 0], [0, 3]]
    made = squares([mask], [mask], 2, 1.3)
    assert [int(frame.sum()) for frame in made] == [2 * 13**2] * 3
    assert not (made & mask).any()
    ahead = np.flatnonzero(made[2].any(axis=0)).min() - np.flatnonzero(made[0].any(axis=0)).min()
    assert ahead == 6
    taken = np.zeros((7, 9), dtype=bool)
    taken[:, :4] = True
    assert emptiest(taken)[1] == 6


def test_pixels_become_cells_and_cells_tokens() -> None:
    mask = np.zeros((5, 8, 8), dtype=bool)
    mask[0, 0, 0] = mask[3, 7, 4] = True
    cells = to_latent(mask, (2, 4, 4), 1)
    assert cells.nonzero().tolist() == [[0, 0, 0], [1, 3, 2]]
    assert to_tokens(cells, (1, 2, 2)).nonzero().tolist() == [[0, 0, 0], [1, 1, 1]]
    assert to_tokens(cells, (2, 1, 1)).nonzero().tolist() == [[0, 0, 0], [0, 3, 2]]
    assert to_latent(mask[:1], (1, 4, 4), 1).nonzero().tolist() == [[0, 0, 0]]


class Pieces:
    """A tokenizer of pieces of two letters and an end, cut at twelve."""

    def tokenize(self, captions: list[str]) -> dict[str, torch.Tensor]:
        rows = [
            [hash(piece) for word in caption.split() for piece in re.findall("..?", word)] + [1] for caption in captions
        ]
        ids = torch.tensor([(row + [0] * 12)[:12] for row in rows])
        return {"ids": ids, "mask": (ids != 0).long()}


def test_a_words_tokens_are_found_by_the_encoders_own_tokenizer(text: Captions) -> None:
    assert text.places(CAPTION, 10, 16) == range(2, 3)
    assert text.places(CAPTION, 0, 5) == range(1)
    pieces: Any = SimpleNamespace(encoder=Pieces())
    pieces._parting = lambda *given: Captions._parting(pieces, *given)
    assert Captions.places(pieces, CAPTION, 10, 16) == range(5, 8), "th re e, re d, ci rc le"
    assert not Captions.places(pieces, "a " * 12 + "circle", 24, 30), "it was cut off"


def test_tasks_of_a_video_are_taken_in_turn() -> None:
    tasks = [Task(row, range(1), torch.ones(1), 1.0) for row in (0, 1, 1, 0, 1)]
    assert [[task.row for task in some] for some in by_turn(tasks)] == [[0, 1], [1, 0], [1]]


# ------------------------------------------------------------------ sampling


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_right_counts_are_bit_for_bit_plain_and_cost_no_call(text: Captions, guidance: float) -> None:
    right = [Seen((10, 16), 2, blocks((0, 0), (2, 2)))]
    found, plain, scene = drawn(sampler({CAPTION: right}), text, [CAPTION, "a star"], guidance)
    assert torch.equal(found, plain)
    assert scene.notes == [
        {"wanted": 2, "before": 2, "after": 2, "right_before": 1, "right_after": 1, "nothing_seen": 0,
         "extra_calls": 0, "extra_gradients": 0}, {}]  # fmt: skip
    assert summed_up(scene.notes)["wanted"] == 2, "of those that have a number"


def test_only_what_is_wrong_is_drawn_again_and_its_calls_are_counted(text: Captions, monkeypatch: Any) -> None:
    many = [Seen((10, 16), 1, blocks((0, 0), (2, 2)))]
    made = sampler({CAPTION: many}, {CAPTION: [Seen((10, 16), 1, blocks((0, 0)))]}, begin=0.2, end=0.5)
    assert made.window(6) == range(1, 3)
    found, plain, scene = drawn(made, text, ["a star", CAPTION])
    assert torch.equal(found[0], plain[0])
    assert not torch.equal(found[1], plain[1])
    assert made.counter.asked == [((2, 3, *SIZE), ["a star", CAPTION]), ((1, 3, *SIZE), [CAPTION])]
    assert scene.notes[0] == {}
    assert scene.notes[1] == {
        "wanted": 1, "before": 2, "after": 1, "right_before": 0, "right_after": 1, "nothing_seen": 0,
        "extra_calls": 2 * 5 + 2, "extra_gradients": 2}  # fmt: skip
    assert not any(parameter.grad is not None for parameter in text.parameters())


@pytest.mark.parametrize(("wanted", "sign"), [(1, 1), (3, -1)])
def test_attention_falls_where_there_is_too_much_and_rises_where_too_little(
    text: Captions, wanted: int, sign: int
) -> None:
    """Outside the mask the first pass's latent is put back; inside, a small step goes down the loss."""
    denoiser, made = tiny_denoiser("video_dit"), sampler(scale=0.02)
    scene = Scene(Cells(), [CAPTION], text)
    (task,), rows = made.tasks([[Seen((10, 16), wanted, blocks((0, 0), (2, 2)))]], SIZE, scene)
    assert rows == [0]
    assert task.weight == (1.0 if sign > 0 else -2.0)
    assert task.places == range(2, 3)
    x, stored = torch.randn(2, 1, 8, *SIZE, generator=torch.Generator().manual_seed(1)).unbind(0)
    cond, paths = text.cond([CAPTION]), cross_attentions(denoiser, None)
    assert paths == [f"transformer_blocks.{block}.attn2" for block in range(len(denoiser.blocks()))]

    def loss(at: torch.Tensor) -> float:
        with torch.no_grad(), denoiser.attention(paths) as taken:
            denoiser(at, torch.tensor([0.7]), cond)
            return float(made.loss(word_maps(taken, cond["mask"])[0], task, denoiser.patch))

    moved = made.corrected(denoiser, x, stored, cond, 0.7, [task], paths, 0.02)
    assert torch.equal(moved[0][:, ~task.mask_THW], stored[0][:, ~task.mask_THW])
    change = (moved - x)[0][:, task.mask_THW]
    assert float(change.square().mean().sqrt()) == pytest.approx(0.02 * abs(task.weight), rel=1e-4)
    inside = torch.where(task.mask_THW, moved, x)
    assert loss(inside) < loss(x)


def test_kinds_of_objects_are_corrected_apart_and_averaged(text: Captions) -> None:
    denoiser, made = tiny_denoiser("video_dit"), sampler()
    x, stored = torch.randn(2, 1, 8, *SIZE, generator=torch.Generator().manual_seed(1)).unbind(0)
    masks = [torch.from_numpy(mask) for mask in blocks((0, 0), (2, 2))]
    tasks = [Task(0, range(2, 3), masks[0], 1.0), Task(0, range(1, 2), masks[1], -2.0)]
    given: Any = (text.cond([CAPTION]), 0.7)
    paths = cross_attentions(denoiser, [0])
    alone = [made.corrected(denoiser, x, stored, *given, [task], paths, 0.1) for task in tasks]
    both = made.corrected(denoiser, x, stored, *given, tasks, paths, 0.1)
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_a_counter_that_sees_nothing_leaves_the_video_and_says_so(text: Captions) -> None:
    found, plain, scene = drawn(sampler({CAPTION: [Seen((10, 16), 3, [])]}), text, [CAPTION])
    assert torch.equal(found, plain)
    assert scene.notes[0]["nothing_seen"] == 1
    assert scene.notes[0]["extra_calls"] == 0


def test_where_none_is_wanted_all_go(text: Captions) -> None:
    found, plain, _ = drawn(sampler({CAPTION: [Seen((10, 16), 0, blocks((0, 0)))]}), text, [CAPTION])
    assert not torch.equal(found, plain)


class Clips(DrawnClips):
    """Two held-out scenes of like objects, the captions of which say how many."""

    def clips(self, _cache: Path, split: Any) -> list[Clip]:
        scenes = [
            draw_scene(0, split, place, size=(64, 64), max_objects=1, test_fraction=0.2, alike=4) for place in (0, 3)
        ]
        return [
            Clip(Path(f"{place}.mp4"), each.caption(), each.truth((64, 64)), 9, (64, 64))
            for place, each in enumerate(scenes)
        ]


class OneShort:
    """Sees one object too few of the first caption, and then all; nothing of others."""

    def __init__(self, options: Any) -> None:
        self.first, self.asked = "", 0

    def create(self) -> Any:
        return self

    def __call__(self, video: torch.Tensor, captions: Any) -> list[list[Seen]]:
        self.asked += 1
        self.first = self.first or captions[0]
        mask = np.zeros(video.shape[2:], dtype=bool)
        mask[:, 4:16, 4:16] = True
        return [[Seen((0, 4), 3, (1 + self.asked) * [mask] if caption == self.first else [])] for caption in captions]


def test_an_evaluation_shows_counts_before_and_after(tmp_path: Path) -> None:
    drawn_options = DrawnOptions(frames=9, size=(64, 64))
    data = Part("data", Plugin(name="scenes", options=DrawnOptions, load=f"{__name__}:Clips"), drawn_options)
    told = Part("counter", Plugin(name="told", options=Options, load=f"{__name__}:OneShort"), Options())
    whole = make_part("sampler", {"use": "count", "counter": "shapes"}, installed())
    given = replace(whole, options=CountOptions(counter=told))
    context = tiny_context(tmp_path / "step", data=data, input=tiny_bundle(tmp_path / "bundle"))
    context.names["input"] = "bundle"
    options = ShapesEvaluationOptions(num_steps=3, guidance=2.0, sampler=given)
    found = ShapesEvaluation(options).run(context).metrics
    assert found["sampler"] == {
        "wanted": 3, "before": 1, "after": 1.5, "right_before": 0, "right_after": 0.5, "nothing_seen": 0.5,
        "extra_calls": 0.5 * (2 * 3 + 1), "extra_gradients": 0.5}  # fmt: skip
    assert {"exact_count", "exact_count_error", "count_distance"} <= found.keys()
    plain = ShapesEvaluation(ShapesEvaluationOptions(num_steps=3)).run(context).metrics
    assert "sampler" not in plain


# ------------------------------------------------------------------ refusals


def test_a_step_that_shows_no_videos_is_refused(text: Captions) -> None:
    said = (
        "^the sampler 'count' looks at the videos that it makes, and this step has none to show. Name it in 'evaluate"
    )
    with pytest.raises(UserError, match=said):
        sampler().sample(tiny_denoiser("video_dit"), torch.zeros(1, 8, *SIZE), text.cond([CAPTION]), SIGMAS)


def test_a_model_without_cross_attention_is_refused() -> None:
    said = (
        "^no attention of the model looks at the caption's words alone, so nothing shows where it draws what. Sample it"
    )
    with pytest.raises(UserError, match=said):
        cross_attentions(tiny_denoiser("video_dit"), ["transformer_blocks.0.attn1"])


def test_a_window_without_steps_is_refused() -> None:
    with pytest.raises(ValidationError, match="corrections begin at 0.5 and end at 0.4: give a larger 'end'"):
        CountOptions(counter=make_part("counter", "shapes", installed()), begin=0.5, end=0.4)


def test_samplers_that_do_not_ask_are_given_no_scene() -> None:
    scene: Any = object()
    assert shown(lambda x: x, scene)(3) == 3
    assert shown(lambda x, scene=None: (x, scene), scene)(3) == (3, scene)


def test_the_example_of_the_page_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins" / "counter.md").read_text("utf-8")
    for name, source in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", page, re.DOTALL):
        (tmp_path / f"{name}.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    names = ("dit_compress_plugins.sampler_count", "bright_dots")
    registry.add([Source(name, "test", "", lambda name=name: importlib.import_module(name)) for name in names])
    assert registry.broken == []
    made = make_part("counter", "dots", registry).build().create()
    video = -torch.ones(1, 3, 2, 16, 16)
    video[..., 2:6, 2:6] = video[..., 9:14, 9:14] = 1
    ((found,),) = made(video, ["three bright dots"])
    assert (found.wanted, found.span, len(found.masks_NFYX)) == (3, (13, 17), 2)
    assert made(video, ["some dots"]) == [[]]


def test_the_page_has_the_contract() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins" / "counter.md").read_text("utf-8")
    for method in (CounterPart.create, Counter.__call__):
        assert inspect.getsource(method).splitlines()[0].strip() in page


def test_a_command_line_names_a_sampler_as_a_recipe_does() -> None:
    assert named("euler") == "euler"
    made = make_part("sampler", named("{use: count, counter: shapes, scale: 1e-1}"), installed()).build()
    assert type(made.counter).__name__ == "ShapesCounter"
    assert made.options.scale == 0.1
    for broken in ("{use: count", "{use: a, use: b}"):
        with pytest.raises(UserError, match="--sampler"):
            named(broken)
