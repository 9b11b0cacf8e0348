"""A folder of videos as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dit_compress.clips import CAPTIONS, split_of, write_captions, write_video
from dit_compress.errors import UserError
from dit_compress_plugins.data_videos import VideosOptions
from dit_compress_plugins.data_videos.data import Videos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight clips, one of them in a folder below."""
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    names = ["below/0.mp4", *(f"{index}.mp4" for index in range(1, 8))]
    for index, name in enumerate(names):
        write_video(folder / name, np.full((5, 32, 32, 3), 20 * index, dtype=np.uint8), 8)
    write_captions(folder, [{"file": name, "caption": f"clip {name}"} for name in names])
    return folder


def videos(folder: Path, **options: object) -> Videos:
    return Videos(VideosOptions(path=folder, frames=5, size=(32, 32), **options))


def test_clips_split_by_caption(folder: Path, tmp_path: Path) -> None:
    data = videos(folder, test_fraction=0.5)
    data.prepare(tmp_path / "cache")
    train, test = (data.clips(tmp_path / "cache", split) for split in ("train", "test"))
    assert len(train) + len(test) == 8
    assert train
    assert test
    assert all(split_of(clip.caption, 0.5) == "test" for clip in test)
    assert train[0].pixels().shape == (5, 32, 32, 3)


def test_the_frame_rate_is_converted(folder: Path) -> None:
    data = Videos(VideosOptions(path=folder, frames=3, size=(32, 32), fps=4.0, test_fraction=0.0))
    assert data.clips(folder / "cache", "train")[0].pixels().shape == (3, 32, 32, 3)


def test_broken_files_are_left_out_of_clips_and_manifest(folder: Path, tmp_path: Path) -> None:
    (folder / "below" / "0.mp4").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"0\.mp4: the video can't be decoded"):
        videos(folder).prepare(tmp_path / "strict")
    data = videos(folder, max_broken=1, test_fraction=0.0)
    data.prepare(tmp_path / "cache")
    assert [clip.path.name for clip in data.clips(tmp_path / "cache", "train")] == [f"{i}.mp4" for i in range(1, 8)]
    assert len(data.manifest(tmp_path / "cache")) == 7
    (folder / "3.mp4").write_bytes(b"another one, later")
    with pytest.raises(UserError, match=r"3\.mp4"):
        data.prepare(tmp_path / "cache")


def test_a_mended_file_comes_back(folder: Path, tmp_path: Path) -> None:
    good = (folder / "1.mp4").read_bytes()
    (folder / "1.mp4").write_bytes(b"garbage")
    data = videos(folder, max_broken=1)
    data.prepare(tmp_path / "cache")
    assert len(data.manifest(tmp_path / "cache")) == 7
    (folder / "1.mp4").write_bytes(good)
    data.prepare(tmp_path / "cache")
    assert len(data.manifest(tmp_path / "cache")) == 8


def test_the_manifest_changes_with_the_folder(folder: Path, tmp_path: Path) -> None:
    data = videos(folder)
    before = data.manifest(tmp_path)
    assert before == data.manifest(tmp_path)
    assert set(before[0]) == {"file", "size_bytes", "time_ns", "caption"}
    write_video(folder / "2.mp4", np.zeros((9, 32, 32, 3), dtype=np.uint8), 8)
    assert data.manifest(tmp_path) != before


def test_a_bad_line_is_named(folder: Path, tmp_path: Path) -> None:
    with (folder / CAPTIONS).open("a") as file:
        file.write("oops\n")
    with pytest.raises(UserError, match=r"captions\.jsonl:9: not JSON"):
        videos(folder).prepare(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        videos(tmp_path / "nowhere").prepare(tmp_path / "cache")
