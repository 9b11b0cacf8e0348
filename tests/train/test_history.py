"""What a resume checks and sets: recipe, version, parts, threads; which checkpoints stay; memory that runs out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_loop import Noisy, context_in, killer, options, samples

from dit_compress.core.errors import UserError
from dit_compress.train.checkpoint import write_state
from dit_compress.train.history import History
from dit_compress.train.loop import fit
from dit_compress.train.memory import state_bytes
from dit_compress.train.objective import Role
from dit_compress.train.options import DistillOptions, TrainOptions
from dit_compress.train.trainee import Trainee

if TYPE_CHECKING:
    from pathlib import Path


def killed(folder: Path, key: str = "one") -> Path:
    """Killed at step 5; checkpoints of steps 2 and 4."""
    context = context_in(folder)
    context.record["key"] = key
    with pytest.raises(KeyboardInterrupt):
        fit(Noisy(watch=killer(5)), samples(), options(7, checkpoint_every=2), context)
    return folder / "checkpoints"


def resume(folder: Path, key: str = "one") -> Any:
    context = context_in(folder)
    context.record["key"] = key
    fit(Noisy(), samples(), options(7, checkpoint_every=2), context)
    return context


def edit(place: Path, **changes: Any) -> None:
    """As another version, or another recipe, would have written it."""
    state = json.loads((place / "state.json").read_text())
    del state["sha256"]
    write_state(place, {**state, **changes})


def test_a_second_training_of_a_step_begins_at_its_own_beginning(tmp_path: Path) -> None:
    """Not where the first one's last checkpoint is; killed, each goes on from its own."""
    context, steps = context_in(tmp_path), list[int]()
    fit(Noisy(), samples(), options(5, checkpoint_every=2), context)
    with pytest.raises(KeyboardInterrupt):
        fit(Noisy(watch=killer(3)), samples(), options(5, checkpoint_every=2), context)
    again = context_in(tmp_path)
    for _ in range(2):
        fit(Noisy(watch=steps.append), samples(), options(5, checkpoint_every=2), again)
    assert list(dict.fromkeys(steps)) == [4, 2, 3]
    assert steps[0] == 4


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    killed(tmp_path)
    with pytest.raises(UserError, match="the checkpoint belongs to another recipe: other options, data or inputs"):
        resume(tmp_path, key="two")


@pytest.mark.parametrize("change", [{"format": 1}, {"engine": 0}])
def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    edit(killed(tmp_path) / "step-00000004", **change)
    with pytest.raises(UserError, match=r"written by another version of dit-compress \(format \d, engine \d; this is"):
        resume(tmp_path)


def test_a_missing_part_and_one_left_over_are_named_together(tmp_path: Path) -> None:
    place = killed(tmp_path) / "step-00000004"
    tensors = json.loads((place / "state.json").read_text())["tensors"]
    tensors["first/weight/other"] = tensors.pop("first/weight/value")
    edit(place, tensors=tensors)
    with pytest.raises(UserError) as caught:
        resume(tmp_path)
    said = str(caught.value).splitlines()
    assert len(said) == 2
    assert "the checkpoint's weight of first.value is missing or of another shape. Delete" in said[0]
    assert "the checkpoint has weight of first.other, which the step does not" in said[1]


def test_a_resume_keeps_the_thread_count_it_began_with(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        killed(tmp_path)
        torch.set_num_threads(1)
        context = resume(tmp_path)
        assert torch.get_num_threads() == 2
        assert context.notes == ["going on with 2 threads, as the step began (1 were asked for)"]
        assert context.record["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_a_damaged_checkpoint_is_said_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = resume(tmp_path / "whole")
    place = killed(tmp_path / "killed") / "step-00000004"
    next(place.glob("*.safetensors")).write_bytes(b"x")
    context = resume(tmp_path / "killed")
    assert len(context.notes) == 1
    assert context.notes[0].startswith(
        "checkpoint step-00000004 is damaged (shard-00001-model-00001-of-00001.safetensors"
    )
    assert f"step: {context.notes[0]}\n" in capsys.readouterr().err
    curves = [(tmp_path / name / "curves.jsonl").read_text() for name in ("whole", "killed")]
    assert curves[0] == curves[1]
    assert whole.notes == []


# ------------------------------------------------------------------ which stay


def history(folder: Path, keep: int) -> History:
    trainee = Trainee("role", Role(torch.nn.Linear(1, 1), lr=0.1))
    return History(context_in(folder), {"role": trainee}, keep)


def kept(made: History) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in made.folder.iterdir())


@pytest.mark.parametrize(("keep", "expected"), [(1, [50]), (2, [40, 50]), (4, [20, 30, 40, 50])])
def test_the_last_ones_stay(tmp_path: Path, keep: int, expected: list[int]) -> None:
    made = history(tmp_path, keep)
    for step in (10, 20, 30, 40, 50):
        made.save(step)
    assert kept(made) == expected


def test_the_best_stays_too_until_a_better_one(tmp_path: Path) -> None:
    made, seen = history(tmp_path, 2), []
    for step, score in ((10, 3.0), (20, 1.0), (30, 2.0), (40, None), (50, 4.0), (60, 0.5), (70, 9.0)):
        made.save(step, score)
        seen.append(kept(made))
    assert seen == [[10], [10, 20], [20, 30], [20, 30, 40], [20, 40, 50], [50, 60], [60, 70]]


def test_the_best_can_be_taken_back(tmp_path: Path) -> None:
    made = history(tmp_path, 1)
    weight = made.trainees["role"].parameters["weight"]
    for step, score, value in ((1, 3.0, 30.0), (2, 1.0, 10.0), (3, 2.0, 20.0)):
        with torch.no_grad():
            weight.fill_(value)
        made.save(step, score)
    again = history(tmp_path, 1)
    assert again.resume() == 3
    assert float(again.trainees["role"].parameters["weight"]) == 20.0
    again.use_best()
    assert float(again.trainees["role"].parameters["weight"]) == 10.0


# ------------------------------------------------------------------ memory


def test_memory_of_a_role_by_hand() -> None:
    """Six float32 numbers: frozen 24 bytes; trained weight, gradient, two moments 96; with an average 120."""
    roles = {
        "teacher": Role(torch.nn.Linear(2, 2)),
        "student": Role(torch.nn.Linear(2, 2), lr=0.1),
        "averaged": Role(torch.nn.Linear(2, 2), lr=0.1, ema=0.9),
    }
    assert state_bytes(roles) == {"teacher": 24, "student": 96, "averaged": 120}


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")],
)
def test_memory_that_runs_out_is_one_message_with_a_plan(tmp_path: Path, error: Exception) -> None:
    objective = Noisy()

    def loss(*_: Any) -> Any:
        raise error

    objective.loss = loss  # type: ignore[method-assign]
    with pytest.raises(UserError) as caught:
        fit(objective, samples(), options(2), context_in(tmp_path))
    assert str(caught.value) == (
        "out of memory on cpu: weights, gradients and optimiser of the roles take 0.00 GiB (first 0.00, second 0.00, "
        "teacher 0.00), activations of 2 samples in 1 parts the rest. Raise 'accumulate' (now 1), or set "
        "'checkpoint_activations: true', or set 'bf16: true', or start more processes (now 1), or lower 'batch' "
        "(now 2). The same command then continues, with --force where an option changed and there are checkpoints"
    )


def test_another_runtime_error_is_not_about_memory(tmp_path: Path) -> None:
    objective = Noisy()

    def loss(*_: Any) -> Any:
        raise RuntimeError("shapes differ")

    objective.loss = loss  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(objective, samples(), options(2), context_in(tmp_path))


def test_a_batch_is_cut_into_equal_parts() -> None:
    with pytest.raises(ValueError, match="a batch of 6 can't be cut into 4 equal parts"):
        TrainOptions(batch=6, accumulate=4)
    assert DistillOptions(batch=8, accumulate=4).accumulate == 4


def test_broken_samples_are_named(tmp_path: Path) -> None:
    given = samples()
    broken = given.x0(range(8)).numpy().copy()
    broken[3] = float("nan")
    given = type(given)(broken, [""] * 8, {}, pixels=False)
    with pytest.raises(UserError, match=r"at step \d: training samples \[3\] hold NaN or infinity. Remove or repair"):
        fit(Noisy(), given, options(4), context_in(tmp_path))
