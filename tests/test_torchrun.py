"""``torchrun -m dit_compress run``: two processes, one of which dies; the same command continues, in two or in one.

torchrun's own launcher starts the run that is killed; the others are two commands with the environment that it gives
(``pair``).
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command import Die, Done, finish, start, torchrun

from dit_compress.core.files import read_json
from dit_compress.model.bundle import Bundle

pytestmark = pytest.mark.slow(20)
RECIPE = Path(__file__).parent / "recipes" / "pair.yaml"


def pair(folder: Path, recipe: Path = RECIPE) -> Done:
    """The same run, as torchrun would start it: the worst status, everything printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    logs = [folder.with_name(f"rank-{rank}.log") for rank in range(2)]
    started = [
        start(
            "run", recipe, "--out", folder, "--threads", "1", log=log,
            env={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
        )
        for rank, log in enumerate(logs)
    ]  # fmt: skip
    ended = [finish(one) for one in started]
    return Done(max(one.status for one in ended), "".join(one.printed for one in ended))


def at_work(log: Path) -> list[int]:
    """The processes, commands and workers, that write into a log."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (place / "fd" / "1").readlink() == log:
                found.append(int(place.name))
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.is_file() else []


@dataclass
class Story:
    folder: Path
    killed: Done
    left: list[int]
    steps_before: int
    checkpoints: list[str]
    again: Done


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A run whose second process is killed while the teacher trains, and the same command again."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    log, partial = folder.with_name("killed.log"), folder / "steps" / "teacher.partial"
    seventh = Die("teacher", "dit_compress.train.loop.train_step", nth=7, rank=1)
    killed = finish(torchrun("run", RECIPE, "--out", folder, "--threads", "1", log=log, die=seventh))
    left, steps = at_work(log), len(lines(partial / "curves.jsonl"))
    checkpoints = sorted(path.name for path in (partial / "checkpoints").iterdir())
    return Story(folder, killed, left, steps, checkpoints, again=pair(folder))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = finish(start("run", RECIPE, "--out", folder, "--threads", "1", log=folder.with_name("log")))
    assert done.status == 0, done.printed
    return folder


def test_all_stop_and_one_message_says_why(story: Story) -> None:
    assert story.killed.status != 0
    said = [line for line in story.killed.printed.splitlines() if "process 1 of 2" in line]
    assert len(said) == 1
    assert "step 'teacher': process 1 of 2, on " in said[0]
    assert "was killed (signal 9), as a machine does that runs out of memory; all were stopped." in said[0]
    assert said[0].endswith("The same command continues from the last checkpoint")
    assert "gloo" not in story.killed.printed  # the survivor's own trouble is no news
    assert story.left == []


def test_it_continued_from_a_checkpoint_both_had_written(story: Story) -> None:
    assert story.steps_before in {6, 7}
    assert story.checkpoints == ["step-00000004"]
    assert story.again.status == 0, story.again.printed
    assert "vae: reused" in story.again.printed
    assert [line["step"] for line in lines(story.folder / "steps" / "teacher" / "curves.jsonl")] == list(range(12))


@pytest.mark.parametrize("step", ["vae", "teacher", "pruned", "student"])
def test_the_curves_are_those_of_one_process(story: Story, alone: Path, step: str) -> None:
    two, one = (lines(run / "steps" / step / "curves.jsonl") for run in (story.folder, alone))
    assert len(two) == len(one) > 1
    for line_1, line_2 in zip(two, one, strict=True):
        assert line_1.keys() == line_2.keys()
        losses = [name for name in line_1 if name.endswith("loss")]
        assert [line_1[name] for name in losses] == pytest.approx([line_2[name] for name in losses], rel=1e-2, abs=1e-3)


def test_the_search_keeps_what_one_process_keeps(story: Story, alone: Path) -> None:
    two, one = (read_json(run / "steps" / "pruned" / "kept.json") for run in (story.folder, alone))
    assert two == one
    assert len(lines(story.folder / "steps" / "pruned" / "probabilities.jsonl")) == 4, "one process notes them"


def test_the_bundle_is_whole(story: Story, alone: Path) -> None:
    two, one = (Bundle.open(run / "steps" / "student" / "bundle") for run in (story.folder, alone))
    weights = [dict(bundle.denoiser().module.state_dict()) for bundle in (two, one)]
    assert {name: value.shape for name, value in weights[0].items()} == {
        name: value.shape for name, value in weights[1].items()
    }
    assert all(bool(value.isfinite().all()) for value in weights[0].values() if value.is_floating_point())


def test_a_users_mistake_is_said_once(tmp_path: Path) -> None:
    """Each worker finds that a batch of 3 can't be shared by two; the first command line says so."""
    text = RECIPE.read_text().replace("steps: 2, batch: 4", "steps: 2, batch: 3")
    recipe = tmp_path / "odd.yaml"
    recipe.write_text(text)
    ended = pair(tmp_path / "run", recipe)
    assert ended.status != 0
    said = [line for line in ended.printed.splitlines() if "a batch of 3 can't be shared by 2 processes" in line]
    assert len(said) == 1, ended.printed
    assert said[0].endswith("Set 'batch' to a multiple of 2")
    assert not (tmp_path / "run" / "steps" / "vae").exists()
