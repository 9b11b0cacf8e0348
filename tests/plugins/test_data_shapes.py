"""The world of moving shapes: what is drawn, said and kept apart."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dit_compress.core.errors import UserError
from dit_compress.data.clips import split_of
from dit_compress.data.source import data_folder
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress_plugins.data_shapes import ShapesOptions
from dit_compress_plugins.data_shapes.data import Shapes
from dit_compress_plugins.data_shapes.render import render
from dit_compress_plugins.data_shapes.world import COLOURS, SIZES, Scene, Thing, path_of

SIZE = (96, 96)


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes(ShapesOptions(num_clips=12, num_test=4))


def test_the_caption_spells_every_attribute() -> None:
    scene = Scene(
        "grey", (Thing("circle", "red", "large", "left", "fast"), Thing("square", "blue", "small", "up", "slow"))
    )
    assert scene.caption() == (
        "a large red circle moving left fast and a small blue square moving up slowly on a grey background"
    )


def test_a_path_is_straight_and_as_long_as_the_speed_says() -> None:
    thing = Thing("circle", "red", "large", "left", "fast", start=(40.0, 70.0))
    path = path_of(thing, 17, SIZE)  # fast is 20 of 96 pixels
    assert np.allclose(path[0], (40.0, 70.0))
    assert np.allclose(path[-1], (40.0, 50.0))
    assert np.allclose(path[8], (40.0, 60.0))


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_all_shapes_of_a_size_have_one_area_around_their_centre(shape: str, size: str) -> None:
    video = render(Scene("black", (Thing(shape, "red", size, "down", "slow", start=(40.0, 50.3)),)), 5, SIZE)
    coverage = (video[..., 0].astype(float) - 16) / (220 - 16)
    assert coverage[0].sum() == pytest.approx((SIZES[size] * 96) ** 2, rel=0.02)
    centre = (coverage[0] * (np.arange(96) + 0.5)).sum() / coverage[0].sum()
    assert centre == pytest.approx(50.3, abs=0.1)


def test_a_square_by_hand() -> None:
    # 36 × 36 pixels around (48, 48): rows and columns 30 … 65 whole, none else.
    video = render(Scene("white", (Thing("square", "blue", "large", "down", "slow", start=(48.0, 48.0)),)), 2, SIZE)
    expected = np.full((96, 96, 3), 240)
    expected[30:66, 30:66] = COLOURS["blue"]
    assert np.array_equal(video[0], expected)


def test_objects_stay_inside_and_apart(shapes: Shapes) -> None:
    for index in range(60):
        scene = shapes.scene("train", index)
        alone = [render(Scene(scene.background, (thing,)), 17, SIZE) for thing in scene.things]
        bare = render(Scene(scene.background, ()), 17, SIZE)
        masks = [(video != bare).any(axis=-1) for video in alone]
        for mask in masks:
            assert not mask[:, [0, -1]].any()
            assert not mask[:, :, [0, -1]].any()
        if len(masks) == 2:
            assert not (masks[0] & masks[1]).any()
            assert scene.things[0].colour != scene.things[1].colour


def test_every_word_is_used_and_splits_never_meet(shapes: Shapes) -> None:
    scenes = {split: [shapes.scene(split, index) for index in range(400)] for split in ("train", "test")}
    captions = {split: {scene.caption() for scene in some} for split, some in scenes.items()}
    assert not captions["train"] & captions["test"]
    for split, some in captions.items():
        assert all(split_of(caption, 0.1) == split for caption in some)
        words = {word for caption in some for word in caption.split()}
        assert {
            "circle",
            "square",
            "triangle",
            "red",
            "green",
            "blue",
            "yellow",
            "small",
            "large",
            "left",
            "right",
            "up",
            "down",
            "slowly",
            "fast",
            "black",
            "grey",
            "white",
            "and",
        } <= words
    twice = sum(len(scene.things) == 2 for scene in scenes["train"])
    assert 150 < twice < 250


def test_one_object_at_most_if_asked() -> None:
    one = Shapes(ShapesOptions(max_objects=1))
    assert all(len(one.scene("train", index).things) == 1 for index in range(50))


def test_prepare_writes_once_and_the_same_bytes(shapes: Shapes, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    shapes.prepare(tmp_path / "a", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(number, 16) for number in range(1, 17)]
    (tmp_path / "b" / "clips.partial").mkdir(parents=True)  # a run that was cut off
    (tmp_path / "b" / "clips.partial" / "old.mp4").write_bytes(b"")
    shapes.prepare(tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a" / "clips").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b" / "clips").iterdir())
    assert len(files) == 17
    for name in files:
        assert (tmp_path / "a" / "clips" / name).read_bytes() == (tmp_path / "b" / "clips" / name).read_bytes()
    again: list[tuple[int, int]] = []
    shapes.prepare(tmp_path / "a", progress=lambda done, total: again.append((done, total)))
    assert not again


def test_clips_and_manifest(shapes: Shapes, tmp_path: Path) -> None:
    shapes.prepare(tmp_path)
    train, test = shapes.clips(tmp_path, "train"), shapes.clips(tmp_path, "test")
    assert (len(train), len(test)) == (12, 4)
    assert [clip.caption for clip in train] == [shapes.scene("train", index).caption() for index in range(12)]
    assert train[0].truth == json.loads(json.dumps(shapes.scene("train", 0).truth(SIZE)))
    drawn = render(shapes.scene("train", 0), 17, SIZE).astype(int)
    assert np.abs(train[0].pixels() - drawn).mean() < 3
    manifest = shapes.manifest(tmp_path)
    assert len(manifest) == 16
    assert manifest[0] == {
        "file": "train_000000.mp4",
        "caption": train[0].caption,
        "size_bytes": train[0].path.stat().st_size,
    }


def test_a_clip_depends_on_its_own_index_alone() -> None:
    few, many = Shapes(ShapesOptions(num_clips=2)), Shapes(ShapesOptions(num_clips=9))
    assert few.scene("train", 1) == many.scene("train", 1)
    scenes = [Shapes(ShapesOptions(seed=seed)).scene("train", 1) for seed in range(4)]
    assert all(one != other for one, other in pairwise(scenes))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (97, 96)}, "97x96"),
        ({"size": (32, 32)}, "32x32"),
        ({"frames": 1}, "frames"),
        ({"num_clips": 0}, "num_clips"),
        ({"clips": 3}, "clips"),
        ({"max_objects": 3}, "max_objects"),
        ({"alike": 5}, "alike\n  Input should be less than or equal to 4"),
        ({"alike": 3, "max_objects": 1}, "'max_objects' belongs to 'alike: 0': leave out what does nothing"),
        ({"alike": 2, "grid": 0.5}, "hardly any train scene of 2 objects can be drawn with"),
        ({"num_clips": 1e12}, "num_clips\n  Input should be less than or equal to 1000000"),
        ({"fps": 1e12}, "fps\n  Input should be less than or equal to 1000"),
        ({"frames": 10**9}, "1000000000 frames of 96x96 pixels are more than 4294967296, and a clip is held in memory"),
        ({"grid": 1e-9}, "1e-09 of the short side is finer than can be computed: give 0"),
        ({"grid": 0.5}, "hardly any train scene of 2 objects can be drawn with 'test_fraction' 0.1 and 'grid' 0.5"),
        ({"test_fraction": 0.999}, "hardly any train scene of 1 object can be drawn with 'test_fraction' 0.999"),
        ({"test_fraction": 1e-9}, "hardly any test scene of 1 object can be drawn with 'test_fraction' 1e-09"),
    ],
)
def test_bad_options(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ShapesOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"grid": 0.5, "max_objects": 1},
        {"grid": 0.5, "size": (64, 128)},
        {"grid": 0.4},
        {"test_fraction": 0.99},
        {"test_fraction": 0.01},
    ],
)
def test_options_at_the_edge_give_scenes(options: dict[str, Any]) -> None:
    shapes = Shapes(ShapesOptions(**options))
    for split in ("train", "test"):
        scenes = [shapes.scene(split, index) for index in range(5)]
        assert {split_of(scene.caption(), shapes.options.test_fraction) for scene in scenes} == {split}


def test_scenes_and_files_stay_as_they_were(shapes: Shapes, tmp_path: Path) -> None:
    worlds = [{}, {"grid": 0.25}, {"grid": 0.0, "seed": 3}, {"test_fraction": 0.01}, {"size": (64, 128)}]
    scenes = [
        repr(Shapes(ShapesOptions(**options)).scene(split, index))
        for options in worlds
        for split in ("train", "test")
        for index in range(20)
    ]
    assert (
        hashlib.sha256("".join(scenes).encode()).hexdigest()
        == "fc1bf18c375d44432e339194cda724c1702171a011621d8e4698ae3b4fcfaa75"
    )


def test_folders_and_keys_of_worlds_without_like_objects_stay_as_they_were() -> None:
    small = {"size": [64, 64], "frames": 9, "max_objects": 1}
    names = [data_folder(Path(), make_part("data", {"use": "shapes", **given}, installed())) for given in ({}, small)]
    assert [str(name) for name in names] == ["data-3bb02b44820afe47", "data-902776858d338a4f"]
    keyed = make_part("evaluate", "shapes", installed()).as_data(contents=True)
    assert not {"alike", "sampler"} & keyed.keys()
    sampled = make_part("evaluate", {"use": "shapes", "sampler": "euler"}, installed()).as_data(contents=True)
    assert sampled["sampler"] == {"use": "euler"}


@pytest.mark.parametrize("grid", [1 / 6, 0.125, 0.25, 0.0])
def test_like_objects_differ_in_their_places_alone_and_stay_apart(grid: float) -> None:
    shapes = Shapes(ShapesOptions(alike=4, size=(64, 64), grid=grid))
    scenes = [shapes.scene("train", index) for index in range(60)]
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4}
    for scene in scenes:
        assert len({thing.phrase() for thing in scene.things}) == 1
        alone = [render(Scene(scene.background, (thing,)), 5, (64, 64)) for thing in scene.things]
        bare = render(Scene(scene.background, ()), 5, (64, 64))
        masks = np.array([(video != bare).any(axis=-1) for video in alone])
        assert masks.sum(axis=0).max() == 1
        assert not masks[:, :, [0, -1]].any()
        assert not masks[:, :, :, [0, -1]].any()
    first, truth = scenes[0], scenes[0].truth((64, 64))
    assert first.caption() == "three tiny green triangles moving down slowly on a white background"
    assert truth["world"]["sizes"] == {"tiny": 12.0}
    one = next(scene for scene in scenes if len(scene.things) == 1)
    assert one.caption().startswith(f"one tiny {one.things[0].colour} {one.things[0].shape} moving")


def test_clips_that_do_not_fit_the_disk_are_refused_by_the_size_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    drawn: list[int] = []
    with pytest.raises(UserError) as caught:
        Shapes(ShapesOptions(num_clips=1_000_000)).prepare(tmp_path / "cache", lambda done, _: drawn.append(done))
    found = re.fullmatch(
        r"(\S+): for 1000200 clips \(([\d,]+) MiB\) there is no space left on the disk\. "
        r"Free some space \(1,024 MiB are left\) or set a smaller 'num_clips', 'frames' or 'size'",
        str(caught.value),
    )
    assert found is not None
    assert found[1] == str(tmp_path / "cache")
    assert 2000 < int(found[2].replace(",", "")) < 20_000  # a clip of 17 × 96 × 96 is 4 to 12 kB
    assert drawn == list(range(1, 8))
    assert not list((tmp_path / "cache").iterdir())


def test_other_sizes_scale() -> None:
    thing = Thing("square", "red", "large", "down", "slow", start=(96.0, 128.0))
    video = render(Scene("black", (thing,)), 2, (192, 256))
    assert (video[0, ..., 0] == 220).sum() == 72 * 72


def test_the_plugin_names_its_code_and_imports_no_torch() -> None:
    assert installed().get("data", "shapes").load == f"{Shapes.__module__}:{Shapes.__name__}"
    code = (
        "import sys, dit_compress.data.clips, dit_compress_plugins.data_shapes, dit_compress_plugins.data_videos, "
        "dit_compress_plugins.evaluate_shapes, dit_compress_plugins.evaluate_reconstruction; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'av', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
