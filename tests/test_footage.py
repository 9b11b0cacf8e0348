"""Films of installed packages, cut by film and by time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dit_compress.core.errors import UserError
from dit_compress.data.frames import read_frames
from dit_compress.data.video import write_video

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import footage


def film(path: Path, count: int, height: int, width: int) -> Path:
    """Frame f is grey of 10·f, the right half 5 brighter."""
    video = np.tile((10 * np.arange(count, dtype=np.uint8))[:, None, None, None], (1, height, width, 3))
    video[:, :, width // 2 :] += 5
    write_video(path, video, 8)
    return path


def test_films_are_cut_by_film_and_by_time(tmp_path: Path) -> None:
    found = {"one": film(tmp_path / "one.mp4", 16, 32, 64), "other": film(tmp_path / "other.mp4", 9, 64, 64)}
    found["short"] = film(tmp_path / "short.mp4", 4, 32, 32)  # three frames of it are to train on: no clip
    cuts = footage.cut(found, tmp_path / "out", 4, (32, 32), held_out=("other",))
    with pytest.raises(UserError, match="out: there is a folder already. Delete it, or move it away"):
        footage.cut(found, tmp_path / "out", 4, (32, 32))
    assert {part: (cut.clips, cut.of) for part, cut in cuts.items()} == {
        "train": (6, ("one",)),  # 12 of 16 frames are three times four, two places side by side
        "later": (2, ("one",)),
        "unseen": (2, ("other",)),
    }
    names = sorted(path.name for path in cuts["train"].folder.iterdir())
    assert names == [f"one-{number:04d}" for number in range(6)]
    means = [
        read_frames(cuts[part].folder / name, 4, (32, 32)).mean((1, 2, 3)).tolist()
        for part, name in (("train", "one-0003"), ("later", "one-0000"))
    ]
    assert means[0] == pytest.approx([45, 55, 65, 75], abs=1.5)  # the right half of frames 4 … 7
    assert means[1] == pytest.approx([120, 130, 140, 150], abs=1.5)
    assert footage.read(found["other"], (32, 32), 2.0).shape == (9, 64, 64, 3)
