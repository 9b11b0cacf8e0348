"""What a path of clips may be: folders of frames, DAVIS, tables, WebDataset; and what is said of bad ones."""

from __future__ import annotations

import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from dit_compress.core.errors import UserError
from dit_compress.data.clips import Clip
from dit_compress.data.frames import frame_files
from dit_compress.data.video import write_video
from dit_compress_plugins.data_videos import VideosOptions
from dit_compress_plugins.data_videos.data import Videos

if TYPE_CHECKING:
    from pathlib import Path


def grey(frames: int, level: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Frame f is grey of ``level + 10·f``."""
    return np.stack([np.full((*size, 3), level + 10 * frame, np.uint8) for frame in range(frames)])


def frames(folder: Path, video: np.ndarray, ending: str = "jpg", first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(video, start=first):
        Image.fromarray(frame).save(folder / f"{number:05d}.{ending}", **({"quality": 98} if ending == "jpg" else {}))
    return folder


def davis(root: Path) -> Path:
    """Three clips of six frames; ImageSets of two years, in both of their forms."""
    for level, name in ((40, "bear"), (80, "dog-agility"), (120, "new_clip")):
        frames(root / "JPEGImages" / "480p" / name, grey(6, level))
    for file, text in {
        "480p/train.txt": "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n",
        "2017/train.txt": "bear\n",
        "2017/val.txt": "dog-agility\n\n",
        "2017/test-dev.txt": "not-here\n",
    }.items():
        (root / "ImageSets" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / file).write_text(text)
    return root


def videos(path: Path, **more: Any) -> Videos:
    size = {} if "sizes" in more else {"frames": 5, "size": (32, 48)}
    return Videos(VideosOptions(path=path, **size, **{"test_fraction": 0.0, **more}))


def prepared(path: Path, cache: Path, split: Any = "train", **more: Any) -> list[Clip]:
    data = videos(path, **more)
    data.prepare(cache)
    return list(data.clips(cache, split))


def problems_of(path: Path, cache: Path, **more: Any) -> dict[str, str]:
    with pytest.raises(UserError) as caught:
        prepared(path, cache, **more)
    assert all(mend for _, _, mend in caught.value.problems), caught.value.problems
    return {where.removeprefix(f"{path}").lstrip("/:"): what for where, what, _ in caught.value.problems}


# ------------------------------------------------------------------ folders of frames


def test_davis_is_read_with_its_lists(tmp_path: Path) -> None:
    root = davis(tmp_path / "DAVIS")
    (bear,) = prepared(root, tmp_path / "cache", split_by="sets")
    (dog,) = prepared(root, tmp_path / "cache", "test", split_by="sets")
    assert (bear.caption, dog.caption) == ("bear", "dog agility")
    # 48x32 covers 24x16 exactly; frame f is 10 brighter than the one before
    small = prepared(root / "JPEGImages" / "480p", tmp_path / "small", split_by="sets")[0]
    assert small.pixels().shape == (5, 32, 48, 3)
    np.testing.assert_allclose(dog.pixels().mean((1, 2, 3)), [80, 90, 100, 110, 120], atol=1)
    (inside,) = prepared(root / "JPEGImages", tmp_path / "inside", "test", split_by="sets")
    assert inside.path == dog.path
    plain = frames(tmp_path / "vos" / "JPEGImages" / "a_cat", grey(6, 50)).parent
    for path in (plain, plain.parent):  # no resolution between
        assert [clip.caption for clip in prepared(path, tmp_path / "vos-cache")] == ["a cat"]
    records = videos(root, split_by="sets").manifest(tmp_path / "cache")
    assert [(record["file"].rpartition("/")[2], record["split"]) for record in records] == [
        ("bear", "train"), ("dog-agility", "test"),
    ]  # fmt: skip
    assert len(prepared(root, tmp_path / "all")) == 3  # by hash every clip counts
    (root / "ImageSets" / "2017" / "val.txt").write_text("dog-agility\nbear\nlost\n")
    with pytest.raises(UserError, match="'bear' stands in both splits"):
        prepared(root, tmp_path / "cache", split_by="sets")
    (root / "ImageSets" / "2017" / "val.txt").write_text("dog-agility\nlost\n")
    with pytest.raises(UserError, match="'lost' stands in ImageSets, and is not there"):
        prepared(root, tmp_path / "cache", split_by="sets")
    (root / "ImageSets" / "2017" / "val.txt").write_bytes(b"dog-agility \xe4\n")
    with pytest.raises(UserError, match=r"2017/val\.txt: the list can't be read .*Save it as UTF-8"):
        prepared(root, tmp_path / "cache", split_by="sets")
    frames(root / "JPEGImages" / "1080p" / "bear", grey(6, 40, (64, 96)))
    with pytest.raises(UserError, match="frames in several resolutions: 1080p, 480p. Name one in 'path', as"):
        prepared(root, tmp_path / "cache")
    with pytest.raises(UserError, match=r"no lists train\.txt, val\.txt"):
        prepared(frames(tmp_path / "plain" / "one", grey(5, 9)).parent, tmp_path / "cache", split_by="sets")


def test_a_plain_folder_of_folders_and_what_changes_with_it(tmp_path: Path) -> None:
    folder = frames(tmp_path / "clips" / "b_two", grey(6, 60), "png", first=7).parent
    frames(folder / "a-one", grey(5, 20), "png")
    first, second = prepared(folder, tmp_path / "cache")
    assert (first.caption, second.caption) == ("a one", "b two")
    np.testing.assert_array_equal(second.pixels(), grey(5, 60))  # PNG keeps every value
    before = videos(folder).manifest(tmp_path / "cache")
    assert before == videos(folder).manifest(tmp_path / "cache")
    Image.fromarray(grey(1, 200)[0]).save(folder / "a-one" / "00002.png")
    assert [record["time_ns"] for record in videos(folder).manifest(tmp_path / "cache")] != [
        record["time_ns"] for record in before
    ]
    stamp = second.stamp()
    seven, eight = (folder / "b_two" / f"0000{number}.png" for number in (7, 8))
    for path, level in ((seven, 200), (eight, 230)):
        Image.fromarray(grey(1, level)[0]).save(path)
        os.utime(path, ns=(0, level))
    before_swap = second.stamp()
    for old, new in ((seven, folder / "kept"), (eight, seven), (folder / "kept", eight)):
        old.rename(new)
    assert len({stamp, before_swap, second.stamp()}) == 3
    assert second.pixels()[:2, 0, 0, 0].tolist() == [230, 200]
    identity = first.identity()
    assert identity[0] == "a-one"
    assert identity[3:] == [5, [32, 48], None]


def test_all_that_is_wrong_with_folders_of_frames_is_said_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    gap = frames(folder / "gap", grey(6, 20))
    (gap / "00003.jpg").unlink()
    mixed = frames(folder / "mixed", grey(5, 20))
    Image.fromarray(grey(1, 20, (16, 16))[0]).save(mixed / "00004.jpg")
    deep = frames(folder / "deep", grey(5, 20), "png")
    Image.fromarray(np.full((32, 48), 40000, np.uint16)).save(deep / "00001.png")
    Image.fromarray(np.full((32, 48, 4), 200, np.uint8)).save(deep / "00002.png")
    broken = frames(folder / "torn", grey(5, 20))
    (broken / "00002.jpg").write_bytes(b"no image")
    frames(folder / "short", grey(3, 20))
    names = frames(folder / "names", grey(5, 20))
    (names / "00001.jpg").rename(names / "first.jpg")
    (names / "00002.jpg").rename(names / "3.jpg")
    with pytest.raises(UserError) as caught:
        frame_files(names)
    assert [what for _, what, _ in caught.value.problems] == [
        "frame 3 twice, '00003.jpg' and '3.jpg'",
        "a frame without a number, 'first.jpg'",
        "a gap between '00000.jpg' and '00003.jpg'",
    ]
    with pytest.raises(UserError, match=r"gone: the folder can't be read \(No such file"):
        frame_files(folder / "gone")
    frames(folder / "good", grey(5, 20))
    found = problems_of(folder, tmp_path / "cache")
    assert found.pop("torn/00002.jpg").startswith("the image can't be read (")
    assert found.pop("names") == "a gap between '00000.jpg' and '00003.jpg'"
    assert found == {
        "deep/00001.png": "an image of 16 bits a channel",
        "deep/00002.png": "an image with an alpha channel",
        "gap": "a gap between '00002.jpg' and '00004.jpg'",
        "mixed": "frames of 32x48 and of 16x16 pixels, such as '00004.jpg'",
        "short": "the video has 3 frames, 5 are wanted",
    }
    kept = prepared(folder, tmp_path / "some", max_broken=6)
    assert [clip.path.name for clip in kept] == ["good"]


def test_a_caption_may_name_an_image_or_a_folder_of_frames(tmp_path: Path) -> None:
    folder = frames(tmp_path / "clips" / "below" / "walk", grey(5, 20)).parents[1]
    Image.fromarray(grey(1, 90)[0]).save(folder / "still.png")
    Image.fromarray(np.full((32, 48, 4), 90, np.uint8)).save(folder / "glass.png")
    write_tar(folder / "old.tar", {"1.txt": b"where there are captions, they say what counts"})
    lines = [{"file": name, "caption": name} for name in ("below/walk", "still.png", "glass.png")]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = [[5, 32, 48], [1, 32, 48]]
    assert problems_of(folder, tmp_path / "a", sizes=sizes) == {"glass.png": "an image with an alpha channel"}
    walk, still = prepared(folder, tmp_path / "b", sizes=sizes, max_broken=1)
    assert (walk.shape, still.shape) == ((5, 32, 48), (1, 32, 48))
    np.testing.assert_array_equal(still.pixels(), grey(1, 90))
    only = problems_of(folder, tmp_path / "c", sizes=[[5, 32, 48]], max_broken=1)
    assert only["still.png"] == "an image, and none of 'sizes' has one frame"


# ------------------------------------------------------------------ tables


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    for number in range(3):
        (folder / "of").mkdir(parents=True, exist_ok=True)
        write_video(folder / "of" / f"{number}.mp4", grey(5, 40 * number), 8)
    return folder


def test_a_csv_names_clips_from_where_it_lies(clips: Path, tmp_path: Path) -> None:
    table = clips / "train.csv"
    elsewhere = tmp_path / "other.mp4"
    write_video(elsewhere, grey(5, 150), 8)
    table.write_text(
        f'\ufeffid,path,caption\n1,of/0.mp4,"a dog, running"\n2,of/2.mp4,"two\nlines"\n3,{elsewhere},far\n'
        "4,of/1.mp4,next\u0085line\u2028and\x0bform\x0cfeed\n",
        "utf-8",
    )
    found = prepared(table, tmp_path / "cache")
    assert [(clip.path.name, clip.caption) for clip in found] == [
        ("0.mp4", "a dog, running"), ("2.mp4", "two\nlines"), ("other.mp4", "far"),
        ("1.mp4", "next\u0085line\u2028and\x0bform\x0cfeed"),
    ]  # fmt: skip
    np.testing.assert_allclose(found[1].pixels().mean((1, 2, 3)), [80, 90, 100, 110, 120], atol=2)


def test_bad_tables_are_told_at_once(clips: Path, tmp_path: Path) -> None:
    table = clips / "train.csv"
    table.write_text("path,caption\nof/0.mp4,\nof/9.mp4,lost\n,alone\nof/1.mp4,one\nof/1.mp4,two\n")
    assert problems_of(table, tmp_path) == {
        "2": "no 'caption'",
        "3": "a caption for 'of/9.mp4', which is not there",
        "4": "no 'path'",
        "6": "a second caption for 'of/1.mp4', the first is on line 5",
    }
    table.write_text("file,text\na,b\n")
    with pytest.raises(UserError, match="no column 'path' and no 'caption', there are 'file', 'text'"):
        prepared(table, tmp_path)
    table.write_text("path,caption,id,caption,id\na,b,c,d,e\n")
    with pytest.raises(UserError, match=r"a second column 'caption', there are 'path', .*Name columns .*, each once"):
        prepared(table, tmp_path)
    table.write_bytes(b"path,caption\n\xff\xfe,x\n")
    with pytest.raises(UserError, match=r"train\.csv: the table can't be read .*Save it as CSV in UTF-8"):
        prepared(table, tmp_path)
    table.write_text("path,caption\n")
    with pytest.raises(UserError, match=r"train\.csv: no clips"):
        prepared(table, tmp_path)
    (clips / "list.xlsx").write_text("")
    with pytest.raises(UserError, match=r"a file, and none of \.csv, \.parquet, \.tar"):
        prepared(clips / "list.xlsx", tmp_path)


def test_a_parquet_table(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = clips / "train.parquet"
    rows = pyarrow.table({"path": ["of/1.mp4", "of/0.mp4"], "caption": ["one", None], "score": [1, 2]})
    parquet.write_table(rows, table)
    assert problems_of(table, tmp_path / "cache") == {"2": "no 'caption'"}
    parquet.write_table(rows.slice(0, 1), table)
    assert [clip.caption for clip in prepared(table, tmp_path / "cache")] == ["one"]
    parquet.write_table(rows.drop_columns(["path"]), table)
    with pytest.raises(UserError, match="no column 'path', there are 'caption', 'score'"):
        prepared(table, tmp_path / "cache")
    table.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"train\.parquet: the table can't be read"):
        prepared(table, tmp_path / "cache")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow. Run pip install 'dit-compress\[parquet\]'"):
        prepared(table, tmp_path / "cache")


# ------------------------------------------------------------------ WebDataset


def write_tar(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_shards_are_read_where_they_lie(clips: Path, tmp_path: Path) -> None:
    content = [(clips / "of" / f"{number}.mp4").read_bytes() for number in range(3)]
    png = io.BytesIO()
    Image.fromarray(grey(1, 70)[0]).save(png, "png")
    shards = tmp_path / "shards"
    write_tar(shards / "b.tar", {"x/0001.mp4": content[2], "x/0001.json": b'{"caption": "three", "id": 7}'})
    write_tar(
        shards / "a.tar",
        {
            "0001.mp4": content[0],
            "0001.txt": b" one \n",
            "0002.txt": b"still",
            "0002.png": png.getvalue(),
            "n.pyd": b"?",
        },
    )
    found = prepared(shards, tmp_path / "cache", sizes=[[5, 32, 48], [1, 32, 48]])
    assert [(clip.path.name, clip.caption, clip.frames) for clip in found] == [
        ("0001.mp4", "one", 5), ("0002.png", "still", 1), ("0001.mp4", "three", 5),
    ]  # fmt: skip
    whole = Clip(clips / "of" / "2.mp4", "", None, 5, (32, 48))
    np.testing.assert_array_equal(found[2].pixels(), whole.pixels())
    np.testing.assert_array_equal(found[1].pixels(), grey(1, 70))
    assert found[0].identity()[:2] == ["0001.mp4", len(content[0])]
    one = prepared(shards / "b.tar", tmp_path / "one")
    assert [clip.caption for clip in one] == ["three"]
    assert len({str(record["file"]) for record in videos(shards).manifest(tmp_path / "new")}) == 3
    (shards / "a.tar").unlink()
    with pytest.raises(UserError, match=r"a\.tar: the tar file can't be read \(.*No such file"):
        found[0].pixels()


def test_bad_shards_are_told_at_once(clips: Path, tmp_path: Path) -> None:
    video = (clips / "of" / "0.mp4").read_bytes()
    shards = tmp_path / "shards"
    files = {"1.mp4": video, "2.txt": b"alone", "3.mp4": video, "3.webm": video, "3.txt": b"two", "4.mp4": video,
             "4.json": b'{"text": 1}', "5.mp4": video, "5.txt": b"five"}  # fmt: skip
    write_tar(shards / "a.tar", files)
    write_tar(shards / "b.tar", {"1.mp4": video, "1.txt": b"one"}, "w:gz")
    found = problems_of(shards, tmp_path / "cache")
    assert found.pop("b.tar").startswith("the tar file can't be read (")
    assert found == {
        "a.tar/1": "no caption",
        "a.tar/2": "a caption without a video or image",
        "a.tar/3": "2 videos or images",
        "a.tar/4": "no caption",
    }
    with pytest.raises(UserError, match=r"none\.tar: no such file"):
        prepared(shards / "none.tar", tmp_path / "cache")


# ------------------------------------------------------------------ sizes


def test_a_clip_gets_the_nearest_aspect_whose_length_fits(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    for name, count, size in (
        ("wide-long", 9, (32, 64)), ("wide-short", 5, (32, 60)), ("square", 9, (48, 48)), ("tall", 5, (64, 32)),
    ):  # fmt: skip
        frames(folder / name, grey(count, 20, size))
    sizes = [[5, 32, 64], [9, 16, 32], [5, 32, 32]]
    found = {clip.path.name: clip for clip in prepared(folder, tmp_path / "cache", sizes=sizes)}
    assert {name: list(clip.shape) for name, clip in found.items()} == {
        "wide-long": [9, 16, 32],  # of equal aspects the longest
        "wide-short": [5, 32, 64],
        "square": [5, 32, 32],
        "tall": [5, 32, 32],  # 1:2 is nearer to 1:1 than to 2:1
    }
    assert found["square"].pixels().shape == (5, 32, 32, 3)
    buckets = [record["bucket"] for record in videos(folder, sizes=sizes).manifest(tmp_path / "cache")]
    assert buckets == [[5, 32, 32], [5, 32, 32], [9, 16, 32], [5, 32, 64]]
    (empty,) = problems_of(folder, tmp_path / "cache", sizes=[*sizes, [5, 64, 16]]).values()
    assert empty == (
        "no clip falls into the size [5, 64, 16] of 'sizes': clips have 5 to 9 or more frames, "
        "width by height is 0.50 to 2.00"
    )


def test_sizes_without_clips_and_clips_without_sizes_come_in_one_message(tmp_path: Path) -> None:
    folder = frames(tmp_path / "clips" / "one", grey(9, 20)).parent
    frames(folder / "short", grey(4, 20))
    gap = frames(folder / "gap", grey(9, 20))
    (gap / "00005.jpg").unlink()
    write_video(folder / "ignored.mp4", grey(5, 0), 8)
    assert problems_of(folder, tmp_path / "cache", sizes=[[9, 32, 48], [5, 48, 32]]) == {
        "short": "the video has 4 frames, the shortest of 'sizes' takes 5",
        "gap": "a gap between '00004.jpg' and '00006.jpg'",
        "": "no clip falls into the size [5, 48, 32] of 'sizes': clips have 9 to 9 or more frames, width by height is "
        "1.50 to 1.50",
    }
