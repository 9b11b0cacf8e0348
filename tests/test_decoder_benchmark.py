"""The benchmark of decoders runs through, tiny."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import decoder
import decoder_clips

pytestmark = pytest.mark.slow(10)


def test_it_runs_tiny_and_goes_on_with_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--out", str(tmp_path), "--tier", "tiny", "--runtimes", "onnxruntime"]
    assert decoder.main(given) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(first["rows"]) == {"original", "small", "pruned"}
    parameters, gflops = ({name: row[key] for name, row in first["rows"].items()} for key in ("parameters", "gflops"))
    assert parameters["pruned"] < parameters["original"]
    assert gflops["pruned"] < gflops["original"]
    assert first["speedup"] > 0
    assert first["db"] == first["rows"]["small"]["db"]
    assert first["rows"]["original"]["db"] == 100
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("bundle.json")}
    assert len(written) == 5
    assert 20 < first["floor_db"] < 100, "of the linear start"
    assert decoder.main([*given, "--rounds", "0"]) == 0
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert second["speedup"] is None
    assert {name: row["db"] for name, row in second["rows"].items()} == {
        name: row["db"] for name, row in first["rows"].items()
    }
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("bundle.json")}
    # Other options of one step: it is made anew, and nothing else, as nothing is made of it.
    tiers = deepcopy(decoder.TIERS)
    tiers["tiny"]["small"]["frame_width"] = 8
    monkeypatch.setattr(decoder, "TIERS", tiers)
    assert decoder.main([*given, "--rounds", "0"]) == 0
    changed = {path.parents[1].name for path, at in written.items() if path.stat().st_mtime_ns != at}
    assert changed == {"small", "linear"}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]["small"]["parameters"] > parameters["small"]


def test_real_clips_are_held_out_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 40, 50, 3))
    monkeypatch.setattr(decoder_clips, "video", lambda _name: frames)
    source = decoder_clips.CutClips(decoder_clips.CutOptions(frames=9, size=(32, 32), num_clips=20, num_test=20))
    train, test = (np.stack([clip.pixels() for clip in source.clips(Path(), split)]) for split in ("train", "test"))
    assert train.shape == test.shape == (20, 9, 32, 32, 3)
    assert train.max() < 75 <= test.min()
    assert (np.diff(test[:, :, 0, 0, 0].astype(int), axis=1) == 1).all()
