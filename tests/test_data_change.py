"""Data that changes between two runs: what changed is said, and a half-trained step is not thrown away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dit_compress.errors import UserError
from dit_compress.files import write_json
from dit_compress.pipeline import _need_same_data, data_change

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


class Node:
    """A step, as far as it matters."""

    name = "teacher"

    def __init__(self, *, reads_data: bool) -> None:
        self.reads_data = reads_data


def test_a_half_trained_step_on_other_data_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"key": "k", "manifest": "before"})
    training: Any = Node(reads_data=True)
    _need_same_data(tmp_path, training, "now")  # nothing was trained yet
    (tmp_path / "checkpoints").mkdir()
    _need_same_data(tmp_path, training, "before")
    other: Any = Node(reads_data=False)
    _need_same_data(tmp_path, other, "now")
    with pytest.raises(UserError, match="step 'teacher' is half done, on data that has changed since") as caught:
        _need_same_data(tmp_path, training, "now")
    assert "--force teacher" in str(caught.value)
