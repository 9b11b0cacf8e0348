"""Killed at any place, the same command continues, and the result is that of an uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from command import BEGINNING, SMOKE, Die, Done, finish, start
from filelock import FileLock

from dit_compress.model.bundle import Bundle

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow(20)
TRACKER = "dit_compress_plugins.tracker_jsonl.tracker:JsonlTracker.log"


class Interrupted:
    """A run folder, and what was seen on the way."""

    def __init__(self, folder: Path, recipe: Path = SMOKE) -> None:
        self.folder, self.recipe = folder, recipe
        self.seen: dict[str, Any] = {}

    def run(self, die: Die | None = None, *more: str) -> Done:
        log = self.folder.with_name("command.log")
        return finish(start("run", self.recipe, "--out", self.folder, "--threads", "1", *more, log=log, die=die))

    def partial(self, step: str) -> Path:
        return self.folder / "steps" / f"{step}.partial"

    def curves(self, step: str, *, finished: bool = False) -> list[dict[str, Any]]:
        place = self.folder / "steps" / step if finished else self.partial(step)
        return [json.loads(line) for line in (place / "curves.jsonl").read_text().splitlines()]

    def mark_first_line(self, step: str) -> None:
        """A line that only survives where the training does not begin at step 0 again."""
        lines = self.curves(step)
        lines[0]["marked"] = 1
        (self.partial(step) / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def checkpoints(self, step: str) -> list[str]:
        return sorted(path.name for path in (self.partial(step) / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """One run, interrupted five times: kill -9 of the whole process group four times, SIGTERM once."""
    run = Interrupted(tmp_path_factory.mktemp("killed") / "run")
    # In the VAE, after its first checkpoint (step 2) and the two steps that follow.
    run.seen["vae"] = run.run(Die("vae", TRACKER, nth=4))
    run.seen["vae curves"], run.seen["vae checkpoints"] = run.curves("vae"), run.checkpoints("vae")
    run.mark_first_line("vae")
    # In the search of the pruning, one step after its second checkpoint.
    run.seen["pruned"] = run.run(Die("pruned", TRACKER, nth=5))
    run.seen["pruned checkpoints"] = run.checkpoints("pruned")
    run.mark_first_line("pruned")
    # In the affine step, the bundle written and not published.
    run.seen["affine"] = run.run(Die("affine", "dit_compress.run.worker.publish", after=False))
    run.seen["affine bundle"] = (run.partial("affine") / "bundle" / "bundle.json").is_file()
    # In the adversarial step, a polite signal first, then a kill in the phase of the generator.
    run.seen["stopped"] = run.run(Die("student", TRACKER, nth=2, by=signal.SIGTERM))
    run.seen["stopped checkpoints"] = run.checkpoints("student")
    run.mark_first_line("student")
    run.seen["student"] = run.run(Die("student", TRACKER, nth=3))
    run.seen["student checkpoints"] = run.checkpoints("student")
    run.seen["end"] = run.run()
    return run


@pytest.mark.parametrize("step", ["vae", "pruned", "affine", "student"])
def test_the_kill_hit_the_command_too_and_nothing_was_published(interrupted: Interrupted, step: str) -> None:
    assert interrupted.seen[step].status == -signal.SIGKILL
    assert f"{step}: running" in interrupted.seen[step].printed
    assert f"{step}: done" not in interrupted.seen[step].printed


def test_finished_steps_are_not_run_again(interrupted: Interrupted) -> None:
    printed = interrupted.seen["end"].printed
    for step in ("base", "vae", "round-trip", "teacher", "pruned", "affine"):
        assert f"{step}: reused" in printed
    for step in ("student", "quality", "speed", "files"):
        assert f"{step}: running" in printed
        assert f"{step}: done" in printed


def test_the_killed_steps_had_checkpoints(interrupted: Interrupted) -> None:
    assert interrupted.seen["vae checkpoints"] == ["step-00000002"]
    assert [line["step"] for line in interrupted.seen["vae curves"]] == [0, 1, 2, 3]
    assert interrupted.seen["pruned checkpoints"] == ["step-00000002", "step-00000004"]
    assert interrupted.seen["student checkpoints"] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize(("step", "length"), [("vae", 6), ("pruned", 6), ("student", 8)])
def test_training_goes_on_from_the_checkpoint_and_not_from_step_0(
    interrupted: Interrupted, step: str, length: int
) -> None:
    lines = interrupted.curves(step, finished=True)
    assert [line["step"] for line in lines] == list(range(length))
    assert lines[0].get("marked") == 1
    assert not any("marked" in line for line in lines[1:])


def test_a_bundle_written_and_not_published_is_not_trusted(interrupted: Interrupted) -> None:
    assert interrupted.seen["affine bundle"]
    assert "affine: running" in interrupted.seen["stopped"].printed
    assert not list((interrupted.folder / "steps").glob("*.partial"))


def test_sigterm_saves_at_once_and_says_how_to_go_on(interrupted: Interrupted) -> None:
    stopped = interrupted.seen["stopped"]
    assert stopped.status == 2
    assert stopped.printed.splitlines()[-1] == (
        "step 'student' was asked to stop. Run the same command: it goes on from the last checkpoint"
    )
    assert interrupted.seen["stopped checkpoints"] == ["step-00000002"]


def test_the_curves_are_those_of_the_uninterrupted_run(interrupted: Interrupted, smoke: Path) -> None:
    for step in ("vae", "teacher", "pruned", "affine", "student"):
        whole = [json.loads(line) for line in (smoke / "steps" / step / "curves.jsonl").read_text().splitlines()]
        assert [{**line, "marked": 1} for line in interrupted.curves(step, finished=True)] == [
            {**line, "marked": 1} for line in whole
        ]


def test_every_bundle_equals_that_of_the_uninterrupted_run(interrupted: Interrupted, smoke: Path) -> None:
    """Checksums of all files, transform logs and lineage: nothing tells the two runs apart."""
    for step in ("base", "vae", "teacher", "pruned", "affine", "student"):
        killed, whole = (Bundle.open(run / "steps" / step / "bundle") for run in (interrupted.folder, smoke))
        assert killed.digest() == whole.digest(), step
        assert killed.data == whole.data, step


@pytest.fixture
def begun(tmp_path: Path) -> Interrupted:
    """An empty run folder of a short recipe."""
    recipe = tmp_path / "beginning.yaml"
    recipe.write_text(BEGINNING)
    (tmp_path / "run").mkdir()
    return Interrupted(tmp_path / "run", recipe)


def test_a_second_command_at_the_same_time_is_refused(begun: Interrupted) -> None:
    with FileLock(begun.folder / ".lock"):
        done = begun.run()
    assert done.status == 2
    assert done.printed == f"{begun.folder}: another run is at work here. Wait for it or stop it\n"
    assert not (begun.folder / "steps").exists()


def test_a_worker_that_outlived_its_run_is_not_joined_by_another(begun: Interrupted) -> None:
    with FileLock(begun.folder / ".worker.lock"):
        done = begun.run()
    assert done.status == 2
    assert (
        done.printed.splitlines()[-1] == f"{begun.folder}: a step of an earlier run is still at work here. Wait for it"
    )
    assert not (begun.folder / "steps" / "base").exists()


def test_force_deletes_nothing_while_a_worker_is_at_work(begun: Interrupted) -> None:
    """Checkpoints, curves and the recipe stay as they were."""
    begun.run(Die("vae", TRACKER, nth=4))
    before = {path: path.read_bytes() for path in begun.folder.rglob("*") if path.is_file()}
    assert begun.checkpoints("vae") == ["step-00000002"]
    with FileLock(begun.folder / ".worker.lock"):
        done = begun.run(None, "--force", "vae")
    assert done.status == 2
    assert (
        done.printed.splitlines()[-1] == f"{begun.folder}: a step of an earlier run is still at work here. Wait for it"
    )
    assert {path: path.read_bytes() for path in begun.folder.rglob("*") if path.is_file()} == before
