"""Trackers, read back by the packages that show them; nothing leaves the machine."""

from __future__ import annotations

import json
import sqlite3
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from toy import part

from dit_compress.core.progress import HEARTBEAT_S, Heartbeat, progress
from dit_compress.model.paths import run_and_step

if TYPE_CHECKING:
    from dit_compress.step.protocols import Tracker

LOSSES = {step: 1.0 / (step + 1) for step in range(6)}


def tracked(folder: Path, tracker: Tracker, steps: range) -> None:
    """Log losses and a picture, as a run from one checkpoint does."""
    picture = folder / "sheet.jpg"
    Image.fromarray(np.full((8, 12, 3), 200, np.uint8)).save(picture)
    tracker.open(folder, resume_step=steps.start)
    for step in steps:
        tracker.log(step, {"loss": LOSSES[step]})
    tracker.picture(steps[-1], picture)
    tracker.close()


@pytest.fixture
def step(tmp_path: Path) -> Path:
    folder = tmp_path / "walk" / "steps" / "student.partial"
    folder.mkdir(parents=True)
    return folder


def test_tensorboard_shows_a_resumed_run_once(step: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked(step, part("tracker", "tensorboard", every=2), range(6))
    tracked(step, part("tracker", "tensorboard", every=2), range(4, 6))  # what stood there from step 4 on is dropped
    shown = EventAccumulator(str(step / "tensorboard")).Reload()
    seen = {event.step: event.value for event in shown.Scalars("loss")}
    assert seen == {index: pytest.approx(LOSSES[index]) for index in (0, 2, 4)}
    (image,) = shown.Images("samples")
    assert (image.step, image.height, image.width) == (5, 8, 12)


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """The history of one offline run: a header, then records of LevelDB's log, each whole in such a small file."""
    from wandb.proto import wandb_internal_pb2 as protocol

    (file,) = folder.glob("*.wandb")
    data, place, rows = file.read_bytes(), 7, []
    while place < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, place)
        assert kind == 1, "a record in parts"
        record = protocol.Record.FromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def test_wandb_writes_offline_and_goes_on_with_its_run(step: Path) -> None:
    tracked(step, part("tracker", "wandb", project="walks"), range(4))
    time.sleep(1)  # it names folders by the second
    tracked(step, part("tracker", "wandb", project="walks"), range(4, 6))
    rows: list[dict[str, Any]] = []
    until = time.monotonic() + 30  # a process of its own writes them
    while not any(row["_step"] == 5 and "loss" in row for row in rows) and time.monotonic() < until:
        runs = sorted((step / "wandb").glob("offline-run-*"))
        rows = [row for run in runs for row in wandb_rows(run)]
    identity = json.loads((step / "wandb.json").read_text("utf-8"))["id"]
    assert {run.name.rpartition("-")[2] for run in runs} == {identity}
    assert {row["_step"]: row["loss"] for row in rows} == {index: pytest.approx(loss) for index, loss in LOSSES.items()}
    assert [row["_step"] for row in rows if "samples" in row or "samples._type" in row] == [3, 5]


def test_trackio_keeps_one_run_of_both_halves(step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is first imported
    tracked(step, part("tracker", "trackio", project="walks"), range(4))
    tracked(step, part("tracker", "trackio", project="walks"), range(4, 6))
    with sqlite3.connect(tmp_path / "trackio" / "walks.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    losses = {index: json.loads(text)["loss"] for _, index, text in rows if "loss" in json.loads(text)}
    assert losses == {index: pytest.approx(loss) for index, loss in LOSSES.items()}
    assert {name for name, _, _ in rows} == {"walk/student"}
    assert [index for _, index, text in rows if "samples" in json.loads(text)] == [3, 5]


def test_a_steps_folder_names_run_and_step() -> None:
    assert run_and_step(Path("/runs/walk/steps/student.partial")) == ("walk", "student")
    assert run_and_step(Path("/runs/walk/steps/student")) == ("walk", "student")


def test_a_line_each_half_minute_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """From 100 of 400, a step each 10 s: after 30 s 103 are done, and 297 take 2970 s."""
    now = [0.0]
    advance = Heartbeat("student", 400, 100, lambda: now[0])
    for _ in range(7):
        now[0] += HEARTBEAT_S / 3
        advance({"loss": 0.25, "norm": 3.0})
    assert capsys.readouterr().err.splitlines() == [
        "student: 103/400, 0.1/s, 0:49:30 left, loss 0.25",
        "student: 106/400, 0.1/s, 0:49:00 left, loss 0.25",
    ]
    with progress("quick", 3) as quick, progress("elsewhere", 3, silent=True) as silent:
        quick()
        silent()
    assert capsys.readouterr().err == ""
