"""VBench: its published totals, the names it looks for, and a step that goes on where it was stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.data.video import read_video
from dit_compress.model.spec import Spec
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress_plugins.evaluate_vbench import DIMENSIONS, VBenchOptions
from dit_compress_plugins.evaluate_vbench.package import measure
from dit_compress_plugins.evaluate_vbench.prompts import wanted
from dit_compress_plugins.evaluate_vbench.totals import read_results, total, totals

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from vbench_totals import LEADERBOARD, reproduced

if TYPE_CHECKING:
    from typing import Any

PROMPTS = [
    {"prompt_en": "a red ball", "dimension": ["color"]},
    {"prompt_en": "a still wall", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a red ball", "dimension": ["object_class"]},
]


def prompts_in(folder: Path, entries: Any = PROMPTS) -> str:
    path = folder / "VBench_full_info.json"
    path.write_text(json.dumps(entries), "utf-8")
    return str(path)


def test_every_row_of_the_leaderboard_is_reproduced() -> None:
    assert len(LEADERBOARD) == 15
    assert [model for model, row in LEADERBOARD.items() if not reproduced(row)] == []


def test_totals_by_hand() -> None:
    """All at the lower end but dynamic degree: 0.5 of 6.5 weights is 7.69; all semantic at the upper end: 100."""
    low = {"subject_consistency": 0.1462, "background_consistency": 0.2615, "temporal_flickering": 0.6293,
           "motion_smoothness": 0.706, "dynamic_degree": 1.0, "aesthetic_quality": 0.0, "imaging_quality": 0.0}  # fmt: skip
    high = dict.fromkeys(DIMENSIONS[7:], 1.0) | {"scene": 0.8222, "appearance_style": 0.2855}
    high |= {"temporal_style": 0.364, "overall_consistency": 0.364}
    found = totals(low | high)
    assert found["vbench_quality"] == pytest.approx(100 * 0.5 / 6.5)
    assert found["vbench_semantic"] == pytest.approx(100)
    assert found["vbench_total"] == pytest.approx((4 * 100 * 0.5 / 6.5 + 100) / 5) == total(100 * 0.5 / 6.5, 100)
    assert list(totals(low)) == ["vbench_quality"], "no total of half the scores"


def test_videos_are_named_as_vbench_looks_for_them(tmp_path: Path) -> None:
    """Two prompts, one of them twice; two videos of one, three of that for flickering."""
    options = VBenchOptions(prompts=prompts_in(tmp_path), seeds=2, flicker_seeds=3)
    names = ["a red ball-0.mp4", "a red ball-1.mp4", *(f"a still wall-{n}.mp4" for n in range(3))]
    assert [video.file for video in wanted(options)] == names
    assert [video.index for video in wanted(options)] == [0, 1, 2, 3, 4]
    some = options.model_copy(update={"dimensions": ["color"]})
    assert [video.file for video in wanted(some)] == names[:2]
    (tmp_path / "plain.txt").write_text("one\n\n two \n", "utf-8")
    lines = VBenchOptions(prompts=str(tmp_path / "plain.txt"), seeds=1)
    assert [video.file for video in wanted(lines)] == ["one-0.mp4", "two-0.mp4"]


def test_a_stopped_step_writes_what_is_missing_and_the_same(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "base")
    step = part("evaluate", "vbench", prompts=prompts_in(tmp_path), seeds=1, flicker_seeds=2, num_steps=1, batch=2)
    assert step.plan(bundle.spec) == bundle.spec
    context = tiny_context(tmp_path / "step", input=bundle)
    result = step.run(context)
    assert result.metrics == {"videos": 3, "prompts": 2}
    folder = context.folder / "vbench"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {"a red ball-0.mp4", "a still wall-0.mp4", "a still wall-1.mp4"}
    assert files["a still wall-0.mp4"] != files["a still wall-1.mp4"]
    assert read_video(folder / "a red ball-0.mp4", 9, (32, 32)).shape == (9, 32, 32, 3)
    (folder / "a still wall-0.mp4").unlink()
    step.run(context)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_results_of_several_files_become_the_totals(tmp_path: Path) -> None:
    row = [float(value) / 100 for value in LEADERBOARD["CogVideoX-5B"].split()]
    for index, name in enumerate(DIMENSIONS):
        (tmp_path / f"results_{index}_eval_results.json").write_text(json.dumps({name: [row[index], []]}), "utf-8")
    metrics = part("evaluate", "vbench", results=str(tmp_path)).run(tiny_context(tmp_path / "step")).metrics
    assert metrics["vbench_total"] == pytest.approx(81.61, abs=0.015)
    assert metrics["missing"] == []
    assert metrics["dimensions"] == dict(zip(DIMENSIONS, row, strict=False))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "no result of VBench"),
        ('{"colour": [0.5]}', "colour: 0.5 is no score"),
        ('{"color": [50]}', "50 is no score"),
    ],
)
def test_a_wrong_result_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a_eval_results.json").write_text(content, "utf-8")
    with pytest.raises(UserError, match=said):
        read_results(tmp_path)


def test_two_models_in_a_folder_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \*_eval_results.json"):
        part("evaluate", "vbench", results=str(tmp_path)).plan(Spec())
    for index, score in enumerate((0.5, 0.6)):
        (tmp_path / f"{index}_eval_results.json").write_text(json.dumps({"color": [score]}), "utf-8")
    with pytest.raises(UserError, match=r"color is 0.6 here, 0.5 in another"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("entries", "said"),
    [([{"prompt": "x"}], "no list of prompts"), ([], "no prompts"),
     ([{"prompt_en": "a/b", "dimension": []}], "can't name a file"),
     ([{"prompt_en": "x" * 300, "dimension": []}], "can't name a file")],
)  # fmt: skip
def test_wrong_prompts_are_refused_at_plan(tmp_path: Path, entries: Any, said: str) -> None:
    step = part("evaluate", "vbench", prompts=prompts_in(tmp_path, entries))
    with pytest.raises(UserError, match=said):
        step.plan(tiny_bundle(tmp_path / "base").spec)


def test_what_is_not_there_to_measure_with_is_said_at_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, step = (
        tiny_bundle(tmp_path / "base").spec,
        part("evaluate", "vbench", prompts=prompts_in(tmp_path), measure=True),
    )
    with pytest.raises(UserError, match="needs the package vbench"):
        step.plan(spec)
    (tmp_path / "vbench").mkdir()
    (tmp_path / "vbench" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="weights are not there"):
        step.plan(spec)


def test_each_dimension_is_measured_once_by_a_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of VBench's command line, which writes what it was given; under torchrun, RANK would mislead it."""
    (tmp_path / "vbench" / "launch").mkdir(parents=True)
    (tmp_path / "vbench" / "launch" / "evaluate.py").write_text(
        "import json, os, pathlib, sys\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "assert 'RANK' not in os.environ and os.environ['HF_HUB_OFFLINE'] == '1'\n"
        "assert given['--dimension'] != 'scene', 'no such model'\n"
        "count = len(os.listdir(given['--videos_path']))\n"
        "result = {given['--dimension']: [count / 10, []]}\n"
        "place = pathlib.Path(given['--output_path']) / 'results_x_eval_results.json'\n"
        "place.write_text(json.dumps(result))\n",
        "utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    videos, results = tmp_path / "videos", tmp_path / "results"
    videos.mkdir()
    (videos / "a-0.mp4").touch()
    with pytest.raises(UserError, match="VBench ended without scene: AssertionError: no such model"):
        measure(videos, results, ["color", "scene"])
    (videos / "a-1.mp4").touch()
    measure(videos, results, ["color", "human_action"])
    assert read_results(results) == {"color": 0.1, "human_action": 0.2}


def test_options_are_one_of_two_and_known() -> None:
    for wrong in ({}, {"prompts": "a", "results": "b"}, {"prompts": "a", "dimensions": ["colour"]}):
        with pytest.raises(ValueError, match=r"give either|unknown dimensions: colour"):
            VBenchOptions(**wrong)
    with pytest.raises(ValueError, match=r"'seeds' belongs to 'prompts'"):
        VBenchOptions(results="a", seeds=3)
