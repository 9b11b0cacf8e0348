"""Clips on disk: videos, captions, splits, and what is said of a bad folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from dit_compress.core.errors import UserError
from dit_compress.data.clips import CAPTIONS, find_broken, read_folder, split_of, write_captions
from dit_compress.data.video import look_at_video, read_video, write_video

SHAPE = {"frames": 4, "size": (32, 32)}


def ramp(num_frames: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Frame f is grey of value 10·f."""
    frames = np.arange(num_frames, dtype=np.uint8) * 10
    return np.tile(frames[:, None, None, None], (1, height, width, 3))


def levels(video: np.ndarray) -> list[int]:
    """The f of each frame of :func:`ramp`."""
    return np.rint(video.mean(axis=(1, 2, 3)) / 10).astype(int).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips with captions."""
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", ramp(5), 8)
    write_captions(tmp_path, [{"file": f"{name}.mp4", "caption": f"clip {name}"} for name in "abc"])
    return tmp_path


def append(folder: Path, line: str) -> None:
    with (folder / CAPTIONS).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def test_pixels_survive_the_file(tmp_path: Path) -> None:
    video = ramp(5)
    video[:, :, :16] = (220, 40, 40)
    write_video(tmp_path / "v.mp4", video, 8)
    back = read_video(tmp_path / "v.mp4", 5, (32, 32)).astype(int)
    assert np.abs(back - video)[:, :, :12].max() <= 3  # chroma is halved, so not at the edge
    assert np.abs(back - video)[:, :, 20:].max() <= 3


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", noise, 8)
    write_video(tmp_path / "b.mp4", noise, 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        (8.0, [0, 1, 2, 3, 4, 5]),
        (4.0, [0, 2, 4, 6, 8, 10]),
        (16.0, [0, 0, 1, 1, 2, 2]),
        (6.0, [0, 1, 2, 4, 5, 6]),  # at 0, 1.33, 2.67, 4, 5.33, 6.67 frames
    ],
)
def test_frames_are_those_on_screen_at_the_new_rate(tmp_path: Path, fps: float | None, expected: list[int]) -> None:
    write_video(tmp_path / "v.mp4", ramp(12), 8)
    assert levels(read_video(tmp_path / "v.mp4", 6, (32, 32), fps)) == expected


def test_the_last_frame_stays_for_its_duration(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", ramp(3), 8)
    assert levels(read_video(tmp_path / "v.mp4", 6, (32, 32), 16.0)) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match=r"v\.mp4: the video has 6 frames at 16 frames a second, 7 are wanted"):
        read_video(tmp_path / "v.mp4", 7, (32, 32), 16.0)


def test_resize_keeps_the_aspect_and_crops_the_centre(tmp_path: Path) -> None:
    video = np.zeros((2, 64, 128, 3), dtype=np.uint8)
    video[:, :, 32:96] = 255  # the middle half
    write_video(tmp_path / "v.mp4", video, 8)
    assert read_video(tmp_path / "v.mp4", 2, (32, 32)).min() > 200
    wide = read_video(tmp_path / "v.mp4", 2, (32, 64)).astype(int)
    assert wide[:, :, 18:46].min() > 240
    assert wide[:, :, :14].max() < 15


def turned(content: bytes, matrix: tuple[int, ...]) -> bytes:
    """An mp4 whose track header says how to turn its frames: nine 16.16 numbers after 40 bytes (ISO 14496-12)."""
    start = content.index(b"tkhd") + 4 + 40
    return content[:start] + struct.pack(">9i", *matrix) + content[start + 36 :]


ONE, UNIT = 1 << 16, 1 << 30
QUARTER = (0, ONE, 0, -ONE, 0, 0, 32 * ONE, 0, UNIT)  # what telephones write for what was filmed upright
HALF = (-ONE, 0, 0, 0, -ONE, 0, 64 * ONE, 32 * ONE, UNIT)


@pytest.mark.parametrize(
    ("matrix", "size", "red", "blue"),
    [
        (QUARTER, (64, 32), (2, 16), (61, 16)),  # by the clock: what was left is above
        (QUARTER, (32, 16), (1, 8), (30, 8)),
        (HALF, (32, 64), (16, 61), (16, 2)),
    ],
)
def test_a_video_is_turned_as_its_file_says(
    tmp_path: Path, matrix: tuple[int, ...], size: tuple[int, int], red: tuple[int, int], blue: tuple[int, int]
) -> None:
    frames = np.zeros((3, 32, 64, 3), np.uint8)
    frames[:, :, :32, 0], frames[:, :, 32:, 2] = 255, 255
    path = tmp_path / "telephone.mp4"
    write_video(path, frames, 8)
    path.write_bytes(turned(path.read_bytes(), matrix))
    found = read_video(path, 3, size)
    assert found.shape == (3, *size, 3)
    for (y, x), colour in ((red, (255, 0, 0)), (blue, (0, 0, 255))):
        np.testing.assert_allclose(found[1, y, x], colour, atol=8)


def test_a_short_video_is_named(tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4", ramp(3), 8)
    with pytest.raises(UserError, match=r"short\.mp4: the video has 3 frames, 9 are wanted"):
        read_video(tmp_path / "short.mp4", 9, (32, 32))


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 50])
def test_a_broken_video_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    for reading in (lambda: read_video(path, 1, (32, 32)), lambda: look_at_video(path)):
        with pytest.raises(UserError, match=r"broken\.mp4: the video can't be decoded"):
            reading()


def test_what_is_broken_further_on_is_told_without_a_mend_that_would_not_help(tmp_path: Path) -> None:
    """The first frame decodes, so max_broken would pass the file once more."""
    path = tmp_path / "later.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8), 8)
    content = bytearray(path.read_bytes())
    middle = len(content) // 4
    content[middle : middle + 8000] = bytes(8000)
    path.write_bytes(content)
    assert look_at_video(path, 9).frames == 9
    with pytest.raises(
        UserError, match=r"later\.mp4: the video can't be decoded .*Replace the file or take it out of"
    ) as told:
        read_video(path, 9, (64, 64))
    assert "max_broken" not in str(told.value)


def test_odd_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="31x32"):
        write_video(tmp_path / "v.mp4", ramp(2, 31), 8)
    assert not list(tmp_path.iterdir())


def test_split_is_a_function_of_the_caption() -> None:
    names = [f"caption {index}" for index in range(2000)]
    first = [split_of(name, 0.1) for name in names]
    assert first == [split_of(name, 0.1) for name in names]
    assert 0.08 < first.count("test") / len(first) < 0.12
    assert {split_of(name, 0.0) for name in names} == {"train"}
    # A larger test split contains the smaller one.
    assert all(split_of(name, 0.3) == "test" for name, split in zip(names, first, strict=True) if split == "test")


def test_a_folder_gives_its_clips_in_order(folder: Path) -> None:
    (folder / "d.mp4").write_bytes((folder / "a.mp4").read_bytes())
    append(folder, json.dumps({"file": "d.mp4", "caption": "again", "truth": {"count": 1}}))
    clips = read_folder(folder, **SHAPE)
    assert [clip.caption for clip in clips] == ["clip a", "clip b", "clip c", "again"]
    assert clips[3].truth == {"count": 1}
    assert clips[0].truth is None
    assert clips[0].pixels().shape == (4, 32, 32, 3)
    assert clips[0].pixels().dtype == np.uint8


def test_a_missing_or_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_folder(tmp_path / "nowhere", **SHAPE)
    with pytest.raises(UserError, match="an empty folder"):
        read_folder(tmp_path, **SHAPE)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"a folder without captions\.jsonl"):
        read_folder(tmp_path, **SHAPE)
    (tmp_path / CAPTIONS).write_text("\n")
    with pytest.raises(UserError, match=r"captions\.jsonl: no clips"):
        read_folder(tmp_path, **SHAPE)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file": "a.mp4"', "not JSON"),
        ("[1, 2]", "a list"),
        ('{"caption": "no file"}', "no 'file'"),
        ('{"file": "a.mp4", "caption": " "}', "no 'caption'"),
        ('{"file": "a.mp4", "caption": 3}', "no 'caption'"),
        ('{"file": "a.mp4", "caption": "x", "truth": 1}', "'truth' is not an object"),
        ('{"file": "gone.mp4", "caption": "x"}', "a caption for 'gone.mp4'"),
        ('{"file": "%s.mp4", "caption": "x"}' % ("n" * 300), "can't be looked up (File name too long)"),
        ('{"file": "a\\u0000.mp4", "caption": "x"}', "which is not there"),
        ('{"file": "d.mp4", "caption": "x", "truth": ' + '{"a":' * 60 + "1" + "}" * 61, "nested more than 50 deep"),
        ('{"file": "d.mp4", "caption": ' + "[" * 100_000, "nested more than 50 deep. Write it flat"),
        ('{"file": "d.mp4", "caption": "half a \\ud83d"}', "half a character ('\\ud83d') in a text. Write both halves"),
        ('{"file": "d.mp4", "caption": "x", "truth": {"\\udc00": 1}}', "half a character"),
        ('{"file": "d.mp4", "caption": "x", "truth": {"n": %s}}' % ("9" * 5000), "a number of more than 4300 digits"),
        ('{"file": "c.mp4", "caption": "x"}', "a second caption for 'c.mp4', the first is on line 3. Delete one"),
        ('{"file": "./c.mp4", "caption": "x"}', "a second caption for './c.mp4', the first is on line 3"),
        ('{"file": "/tmp/c.mp4", "caption": "x"}', "'file' leads out of the folder: '/tmp/c.mp4'. Give the path from"),
        ('{"file": "below/../c.mp4", "caption": "x"}', "'file' leads out of the folder"),
        ('{"file": "d.mp4", "caption": "x", "caption": "y"}', "the key 'caption' stands twice. Keep one of the two"),
    ],
)
def test_a_bad_line_is_named_with_its_number(folder: Path, line: str, said: str) -> None:
    append(folder, line)
    with pytest.raises(UserError) as caught:
        read_folder(folder, **SHAPE)
    assert f"{CAPTIONS}:4: " in str(caught.value)
    assert said in str(caught.value)


def test_all_bad_lines_are_told_at_once_up_to_ten(folder: Path) -> None:
    append(folder, "\n".join(["oops"] * 12))
    with pytest.raises(UserError) as caught:
        read_folder(folder, **SHAPE)
    assert f"{CAPTIONS}:4: " in str(caught.value)
    assert f"{CAPTIONS}:13: " in str(caught.value)
    assert "and 2 more" in str(caught.value)


def test_captions_that_are_not_text(folder: Path) -> None:
    (folder / CAPTIONS).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"captions\.jsonl: the captions can't be read"):
        read_folder(folder, **SHAPE)


def test_broken_files_are_left_out_up_to_a_limit(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "b.mp4").write_bytes(b"garbage")
    clips = read_folder(folder, **SHAPE)
    broken = find_broken(clips, max_broken=1)
    assert list(broken) == [folder / "b.mp4"]
    assert "b.mp4" in caplog.text
    assert [clip.path.name for clip in read_folder(folder, **SHAPE, leave_out=broken)] == ["a.mp4", "c.mp4"]
    with pytest.raises(UserError, match=r"b\.mp4: the video can't be decoded"):
        find_broken(clips)


def test_only_a_line_feed_ends_a_line(folder: Path) -> None:
    captions = ["next\u0085line", "line\u2028separator", "form\x0cfeed and \x1c\u2029 the others"]
    write_captions(
        folder, [{"file": f"{name}.mp4", "caption": text} for name, text in zip("abc", captions, strict=True)]
    )
    assert [clip.caption for clip in read_folder(folder, **SHAPE)] == captions
    append(folder, "oops")
    with pytest.raises(UserError, match=r"captions\.jsonl:4: not JSON"):
        read_folder(folder, **SHAPE)


def test_a_file_from_windows_is_read(folder: Path) -> None:
    lines = [json.dumps({"file": f"{name}.mp4", "caption": name}) for name in "abc"]
    (folder / CAPTIONS).write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    assert [clip.caption for clip in read_folder(folder, **SHAPE)] == ["a", "b", "c"]


def test_the_faults_of_all_lines_come_at_once(folder: Path) -> None:
    for line in ('{"file": "a.mp4", "caption": "x"}', '{"file": "../a.mp4", "caption": "x"}', "[" * 100_000):
        append(folder, line)
    with pytest.raises(UserError) as caught:
        read_folder(folder, **SHAPE)
    assert [where.rpartition(":")[2] for where, _, _ in caught.value.problems] == ["4", "5", "6"]


def test_a_folder_whose_name_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the captions can't be read \(\[Errno 36\] File name too long"):
        read_folder(tmp_path / ("n" * 300), **SHAPE)
