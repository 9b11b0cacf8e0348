"""What changes between two runs is said, and a half-trained step is not thrown away because of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dit_compress.core.errors import UserError
from dit_compress.core.files import write_json
from dit_compress.run.changes import data_change, need_same

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = [{"file": f"{name}.mp4", "size_bytes": 10, "caption": name} for name in "abc"]


def test_nothing_is_said_of_a_first_run_or_of_equal_data(tmp_path: Path) -> None:
    assert data_change(tmp_path / "data.json", RECORDS) == ""
    write_json(tmp_path / "data.json", RECORDS)
    assert data_change(tmp_path / "data.json", RECORDS) == ""


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([RECORDS[0], {**RECORDS[1], "size_bytes": 11}, RECORDS[2]], "1 samples changed, 0 came, 0 went (the first by name: b.mp4)"),
        ([*RECORDS, {"file": "d.mp4"}], "0 samples changed, 1 came, 0 went (the first by name: d.mp4)"),
        (RECORDS[1:], "0 samples changed, 0 came, 1 went (the first by name: a.mp4)"),
        (RECORDS[::-1], "the samples stand in another order"),
    ],
)  # fmt: skip
def test_what_changed_is_said(tmp_path: Path, now: list[dict[str, Any]], said: str) -> None:
    write_json(tmp_path / "data.json", RECORDS)
    assert data_change(tmp_path / "data.json", now) == said


MADE_OF: dict[str, Any] = {
    "engine": 3, "kind": "distill", "inputs": {"input": "a", "teacher": "b"}, "seed": 0, "video": (9, 64, 64),
    "manifest": "before", "sampler": None,
    "parts": {"step": {"plugin": "flow", "options": {"lr": 0.001, "losses": {"kl": 1.0, "pixel": 1.0}}}},
}  # fmt: skip


def options(**losses: float) -> dict[str, Any]:
    return {"parts": {"step": {"plugin": "flow", "options": {"lr": 0.002, "losses": losses}}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"manifest": "now"}, "on data that has changed since"),
        ({"inputs": {"input": "a", "teacher": "c"}}, "from another teacher"),
        ({"engine": 4}, "by another version of dit-compress (revision 3, this is 4)"),
        ({"seed": 1, "video": (9, 64, 96)}, "with other options (seed was 0, is 1, video was [9, 64, 64], is [9, 64, 96])"),
        (options(kl=1.0, pixel=2.0), "with other options (lr was 0.001, is 0.002, pixel was 1.0, is 2.0)"),
        (
            {"manifest": "now", **options(pixel=1.0)},
            "on data that has changed since and with other options (lr was 0.001, is 0.002, kl was 1.0, is None)",
        ),
    ],
)  # fmt: skip
def test_a_half_trained_step_is_not_begun_anew_in_silence(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_json(tmp_path / "job.json", {"key": "k", "made_of": MADE_OF})
    need_same(tmp_path, "teacher", MADE_OF | change)  # nothing was trained yet
    (tmp_path / "checkpoints").mkdir()
    need_same(tmp_path, "teacher", MADE_OF | change)
    (tmp_path / "checkpoints" / "step-00000004").mkdir()
    with pytest.raises(UserError) as caught:
        need_same(tmp_path, "teacher", MADE_OF | change)
    ((where, what, mend),) = caught.value.problems
    assert (where, what) == (str(tmp_path), f"step 'teacher' is half done, {said}")
    assert mend == "Put it back as it was to go on, or give --force teacher to begin the step anew"


def test_a_job_that_can_not_be_read_is_no_reason_to_throw_checkpoints_away(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(UserError, match="step 'teacher' is half done, by another recipe or version"):
        need_same(tmp_path, "teacher", MADE_OF)
