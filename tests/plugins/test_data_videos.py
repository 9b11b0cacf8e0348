"""A folder of videos as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy import context_in

from dit_compress.core.errors import UserError
from dit_compress.data.clips import CAPTIONS, split_of, write_captions
from dit_compress.data.source import manifest_digest
from dit_compress.data.video import write_video
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
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
    assert set(before[0]) == {"file", "size_bytes", "time_ns", "caption", "split"}
    write_video(folder / "2.mp4", np.zeros((9, 32, 32, 3), dtype=np.uint8), 8)
    assert data.manifest(tmp_path) != before


def test_the_manifest_changes_with_what_is_taken_and_held_out(folder: Path, tmp_path: Path) -> None:
    half = {"test_fraction": 0.5}
    others = [{}, half, {**half, "split_by": "file"}, {**half, "fps": 4.0}, {**half, "fps": 8.0}]
    sources = [videos(folder, **more) for more in others]
    assert len({manifest_digest(source, tmp_path) for source in sources}) == 5
    record = sources[3].manifest(tmp_path)[2]
    assert (record["fps"], record["split"]) == (4.0, split_of("clip 2.mp4", 0.5))


def test_a_bad_line_is_named(folder: Path, tmp_path: Path) -> None:
    with (folder / CAPTIONS).open("a") as file:
        file.write("oops\n")
    with pytest.raises(UserError, match=r"captions\.jsonl:9: not JSON"):
        videos(folder).prepare(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        videos(tmp_path / "nowhere").prepare(tmp_path / "cache")


def test_clips_that_are_too_short_are_named_before_training(folder: Path, tmp_path: Path) -> None:
    for name, frames in (("2.mp4", 4), ("5.mp4", 3), ("6.mp4", 9)):
        write_video(folder / name, np.zeros((frames, 32, 32, 3), dtype=np.uint8), 8)
    with pytest.raises(UserError) as caught:
        videos(folder).prepare(tmp_path / "cache")
    assert [(Path(where).name, what) for where, what, _ in caught.value.problems] == [
        ("2.mp4", "the video has 4 frames, 5 are wanted"),
        ("5.mp4", "the video has 3 frames, 5 are wanted"),
    ]
    data = videos(folder, max_broken=2, test_fraction=0.0)
    data.prepare(tmp_path / "cache")
    assert [clip.pixels().shape[0] for clip in data.clips(tmp_path / "cache", "train")] == [5] * 6


def test_the_length_is_that_at_the_new_frame_rate(folder: Path, tmp_path: Path) -> None:
    """5 frames at 8 a second are 10 at 16 a second, and 3 at 4."""
    Videos(VideosOptions(path=folder, frames=10, size=(32, 32), fps=16.0)).prepare(tmp_path / "a")
    Videos(VideosOptions(path=folder, frames=3, size=(32, 32), fps=4.0)).prepare(tmp_path / "b")
    with pytest.raises(UserError, match="the video has 3 frames at 4 frames a second, 4 are wanted"):
        Videos(VideosOptions(path=folder, frames=4, size=(32, 32), fps=4.0)).prepare(tmp_path / "c")


def test_captions_that_repeat_can_be_split_by_file(folder: Path, tmp_path: Path) -> None:
    write_captions(folder, [{"file": f"{index}.mp4", "caption": "a video"} for index in range(1, 8)])
    by_caption, by_file = (videos(folder, test_fraction=0.5, split_by=word) for word in ("caption", "file"))
    assert {len(by_caption.clips(tmp_path, split)) for split in ("train", "test")} == {0, 7}
    names = {clip.path.name for clip in by_file.clips(tmp_path, "test")}
    assert names == {f"{i}.mp4" for i in range(1, 8) if split_of(f"{i}.mp4", 0.5) == "test"}
    assert 0 < len(names) < 7


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_are_the_same_streamed_and_decoded_once(folder: Path, tmp_path: Path, workers: int) -> None:
    context = context_in(tmp_path)
    data = {
        "use": "videos",
        "path": str(folder),
        "frames": 5,
        "size": [32, 32],
        "test_fraction": 0.0,
        "workers": workers,
    }
    context.parts["data"] = make_part("data", data, installed())
    samples = context.pixels("train")
    assert samples.streamed == (workers > 0)
    assert list(tmp_path.glob("pixels-*.npy")) == [] or workers == 0
    # Clip i is grey of 20·i: in [-1, 1] that is 20·i/127.5 - 1, to what the file format keeps.
    assert samples.x0([7, 3]).mean((1, 2, 3, 4)).tolist() == pytest.approx([140 / 127.5 - 1, 60 / 127.5 - 1], abs=0.02)
    assert samples.x0([7, 3]).shape == (2, 3, 5, 32, 32)


def test_pixels_kept_are_those_of_the_clips_that_are_asked_for(folder: Path, tmp_path: Path) -> None:
    """Of one folder, other shares held out are other clips."""
    for share in (0.5, 0.0):
        context = context_in(tmp_path)
        data = {"use": "videos", "path": str(folder), "frames": 5, "size": [32, 32], "workers": 0}
        context.parts["data"] = make_part("data", {**data, "test_fraction": share}, installed())
        clips = context.clips("train")
        grey = [20 * int(clip.path.stem) / 127.5 - 1 for clip in clips]
        assert context.pixels("train").x0(range(len(clips))).mean((1, 2, 3, 4)).tolist() == pytest.approx(
            grey, abs=0.02
        )
    assert len(clips) == 8
    assert len(list(tmp_path.glob("pixels-train-*.npy"))) == 2
