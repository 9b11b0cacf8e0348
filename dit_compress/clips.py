"""Captioned clips on disk: mp4 files beside one ``captions.jsonl``.

A line of ``captions.jsonl`` is ``{"file": "0001.mp4", "caption": "a dog runs", "truth": {...}}``; ``truth``
may be missing. Whatever is wrong with a folder is a ``UserError`` that names the file, and the line.

Shapes: F frames of Y × X pixels, uint8, red green blue.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dit_compress.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import av

CAPTIONS = "captions.jsonl"
Split = Literal["train", "test"]
_log = logging.getLogger(__name__)

# Without look-ahead: with B-frames and mbtree, equal frames now and then gave other bytes, even on one thread.
_X264 = "threads=1:bframes=0:rc-lookahead=0:mbtree=0:scenecut=0:colorprim=bt709:transfer=bt709:colormatrix=bt709"
_ENCODER = {"crf": "10", "preset": "veryfast", "x264-params": _X264}
_NUM_NAMED = 10
"""How many broken lines or files one error names."""
_AT_A_TIME = 64
"""Videos that are looked at before it is asked whether there is any use in going on."""


@dataclass(frozen=True)
class Clip:
    """One captioned video; its pixels are decoded when asked for.

    path: the video file.
    caption: what it shows.
    truth: what is known of it beyond the caption, as JSON data.
    frames, size, fps: what :meth:`pixels` gives; size is (Y, X), fps None keeps the file's own rate.
    """

    path: Path
    caption: str
    truth: Mapping[str, Any] | None = field(default=None, compare=False)
    frames: int = 17
    size: tuple[int, int] = (96, 96)
    fps: float | None = None

    def pixels(self) -> np.ndarray:
        """Decode ``[F,Y,X,3]`` uint8; raises ``UserError`` naming the file where it can't."""
        return read_video(self.path, self.frames, self.size, self.fps)

    def record(self) -> dict[str, Any]:
        """What is known of the clip, as JSON data."""
        about = {"file": self.path.name, "caption": self.caption}
        return about if self.truth is None else {**about, "truth": dict(self.truth)}

    def identity(self) -> list[Any]:
        """JSON that changes with the clip's pixels: the file's name, size and time, and what is taken of it."""
        stat = self.path.stat()
        return [self.path.name, stat.st_size, stat.st_mtime_ns, self.frames, list(self.size), self.fps]


def split_of(caption: str, test_fraction: float) -> Split:
    """The split a caption (or name) belongs to, by its hash: equal captions never part."""
    share = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test_fraction else "train"


# ------------------------------------------------------------------ one video


def read_video(path: Path, frames: int, size: tuple[int, int], fps: float | None = None) -> np.ndarray:
    """The first frames of a video at a frame rate, resized to cover ``size`` and cropped at the centre.

    Args:
        path: any file that FFmpeg reads.
        frames: F, how many frames are wanted.
        size: (Y, X).
        fps: frames a second of the result: of each moment, the frame then on screen. None: every frame.

    Returns:
        ``[F,Y,X,3]`` uint8.

    Raises:
        UserError: the file can't be decoded, or is too short.
    """
    import av

    try:
        with av.open(str(path)) as container:
            pixels = [_fit(frame, size) for _, frame in islice(_shown(container, path, fps), frames)]
    except (av.FFmpegError, OSError) as error:
        raise _broken(path, error) from error
    _need_frames(path, len(pixels), frames, fps)
    return np.stack(pixels)


def check_video(path: Path, frames: int = 1, fps: float | None = None) -> None:
    """Raise ``UserError`` unless the file opens as a video, its first frame decodes and it has ``frames`` at ``fps``.

    Frames are counted by the file's packets, which costs no decoding; where that leaves a doubt, by decoding.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if next(_decode(container, path), None) is None:
                raise UserError("the video has no frames", where=str(path), mend=_MEND_BROKEN)
        if frames > 1 and not _surely_has(path, frames, fps):
            with av.open(str(path)) as container:
                _need_frames(path, sum(1 for _ in islice(_shown(container, path, fps), frames)), frames, fps)
    except (av.FFmpegError, OSError) as error:
        raise _broken(path, error) from error


def _surely_has(path: Path, frames: int, fps: float | None) -> bool:
    """Whether the packets alone show that there is a frame more than wanted."""
    import av

    count, first, last = 0, None, 0.0
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.pts is None or not packet.size:
                continue
            seconds = float(packet.pts * packet.time_base)
            first = seconds if first is None else min(first, seconds)
            last, count = max(last, seconds), count + 1
            if count > frames if fps is None else (last - first) * fps > frames + 1:
                return True
    return False


def _need_frames(path: Path, count: int, frames: int, fps: float | None) -> None:
    """UserError where a video is too short."""
    if count < frames:
        rate = "" if fps is None else f" at {fps:g} frames a second"
        raise UserError(
            f"the video has {count} frames{rate}, {frames} are wanted",
            where=str(path),
            mend="Ask for fewer frames or a higher fps, or take the clip out of the captions",
        )


def _shown(container: av.container.InputContainer, path: Path, fps: float | None) -> Iterator[tuple[float, Any]]:
    """The file's frames at a rate."""
    decoded = _decode(container, path)
    return decoded if fps is None else _resample(decoded, fps)


def write_video(path: Path, frames_FYX3: np.ndarray, fps: float) -> None:
    """Write H.264 in mp4 (yuv420p, BT.709, crf 10), atomically; equal frames give equal bytes.

    Args:
        path: the file; what stands there is replaced.
        frames_FYX3: ``[F,Y,X,3]`` uint8, Y and X even.
        fps: frames a second.
    """
    height, width = frames_FYX3.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(f"a frame of {height}x{width} pixels", where=str(path), mend="Make both sides even")
    partial = path.with_name(path.name + ".partial")
    _encode(partial, frames_FYX3, fps)
    partial.replace(path)


def _encode(path: Path, frames_FYX3: np.ndarray, fps: float) -> None:
    from fractions import Fraction

    import av

    rate = Fraction(fps).limit_denominator(1001)
    # bitexact: the muxer writes neither a time nor its version.
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=_ENCODER)
        stream.height, stream.width = frames_FYX3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for index, pixels in enumerate(frames_FYX3):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", threads=1)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _decode(container: av.container.InputContainer, path: Path) -> Iterator[tuple[float, av.VideoFrame]]:
    """Seconds since the first frame, and the frame."""
    if not container.streams.video:
        raise UserError("the file holds no video", where=str(path), mend=_MEND_BROKEN)
    stream = container.streams.video[0]
    stream.thread_count = 1
    step = 1.0 / float(stream.average_rate or stream.guessed_rate or 25)
    first = None
    for index, frame in enumerate(container.decode(stream)):
        seconds = index * step if frame.time is None else frame.time
        first = seconds if first is None else first
        yield seconds - first, frame


def _resample(decoded: Iterable[tuple[float, av.VideoFrame]], fps: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """At each moment k / fps the frame that is on screen then; the last one stays as long as the one before."""
    shown, since, lasts, count, slack = None, 0.0, 0.0, 0, 1e-3
    for seconds, frame in decoded:
        while shown is not None and count / fps < seconds - slack:
            yield count / fps, shown
            count += 1
        lasts, shown, since = seconds - since, frame, seconds
    while shown is not None and count / fps < since + max(lasts, slack * 2) - slack:
        yield count / fps, shown
        count += 1


def _fit(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """Resize so that the frame covers ``size``, keeping its aspect, and crop the centre: ``[Y,X,3]``."""
    height, width = size
    scale = max(height / frame.height, width / frame.width)
    cover_y, cover_x = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    way = "AREA" if scale < 1 else "BICUBIC"
    pixels = frame.reformat(width=cover_x, height=cover_y, format="rgb24", interpolation=way, threads=1).to_ndarray()
    top, left = (cover_y - height) // 2, (cover_x - width) // 2
    return pixels[top : top + height, left : left + width]


_MEND_BROKEN = "Replace the file, take it out of the captions, or raise max_broken"


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"the video can't be decoded ({error})", where=str(path), mend=_MEND_BROKEN)


# ------------------------------------------------------------------ a folder


def read_folder(
    folder: Path, *, frames: int, size: tuple[int, int], fps: float | None = None, leave_out: Collection[Path] = ()
) -> list[Clip]:
    """The clips that a folder's ``captions.jsonl`` lists, in its order.

    Args:
        folder: mp4 files and ``captions.jsonl``.
        frames, size, fps: what each clip's ``pixels`` gives.
        leave_out: videos to pass over, as :func:`find_broken` gives them.

    Raises:
        UserError: no folder, no captions, a bad line (file and line), a caption without its video.
    """
    clips: list[Clip] = []
    problems: list[UserError] = []
    for where, record in _records(folder, problems):
        path = folder / record["file"]
        if path in leave_out:
            continue
        if not path.is_file():
            problems.append(
                UserError(
                    f"a caption for '{record['file']}', which is not there",
                    where=where,
                    mend="Put the video there or delete the line",
                )
            )
            continue
        clips.append(Clip(path, record["caption"], record.get("truth"), frames, size, fps))
    _raise_all(problems)
    if not clips:
        raise UserError("no clips", where=str(folder / CAPTIONS), mend="Add a line for each video")
    return clips


def find_broken(
    paths: Sequence[Path], *, max_broken: int = 0, frames: int = 1, fps: float | None = None, workers: int = 1
) -> dict[Path, str]:
    """Open each video; path → what is wrong with it, logged as a warning.

    Args:
        paths: the videos.
        max_broken: how many may be.
        frames, fps: what each must have.
        workers: threads that look.

    Raises:
        UserError: more than ``max_broken`` of them are broken or too short; names each, up to ten.
    """
    from concurrent.futures import ThreadPoolExecutor

    def look(path: Path) -> UserError | None:
        try:
            check_video(path, frames, fps)
        except UserError as error:
            return error
        return None

    broken: dict[Path, UserError] = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(paths), _AT_A_TIME):
            some = paths[start : start + _AT_A_TIME]
            broken |= {path: error for path, error in zip(some, pool.map(look, some), strict=True) if error}
            if len(broken) > max_broken + _NUM_NAMED:
                break
    problems = list(broken.values())
    if len(problems) > max_broken:
        _raise_all(problems)
    for problem in problems:
        _log.warning("left out: %s", problem)
    return {path: str(error) for path, error in broken.items()}


def write_captions(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write ``captions.jsonl``, one record a line, keys in order."""
    lines = [json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n" for record in records]
    partial = folder / (CAPTIONS + ".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(folder / CAPTIONS)


def _records(folder: Path, problems: list[UserError]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of each good line; the bad ones go to ``problems``."""
    path = folder / CAPTIONS
    if not folder.is_dir():
        raise UserError("no such folder", where=str(folder), mend="Correct the path")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        seen = "an empty folder" if not any(folder.iterdir()) else f"a folder without {CAPTIONS}"
        raise UserError(
            seen, where=str(folder), mend=f'Write {CAPTIONS}, one {{"file": …, "caption": …}} a line'
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the captions can't be read ({error})", where=str(path), mend="Save them as UTF-8") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, _record(line, where)
            except UserError as error:
                problems.append(error)


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON ({error.msg}, column {error.colno})", where=where, mend="Write one JSON object a line"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"JSON, but a {type(record).__name__}", where=where, mend="Write one JSON object a line")
    for key in ("file", "caption"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise UserError(f"no '{key}'", where=where, mend=f"Give '{key}' as text")
    if not isinstance(record.get("truth", {}), dict):
        raise UserError("'truth' is not an object", where=where, mend="Give an object or leave it out")
    return record


def _raise_all(problems: list[UserError]) -> None:
    if len(problems) > _NUM_NAMED:
        more = UserError(f"and {len(problems) - _NUM_NAMED} more like these")
        raise UserError.join([*problems[:_NUM_NAMED], more])
    if problems:
        raise UserError.join(problems)


def distinct(clips: Sequence[Clip]) -> list[Clip]:
    """One clip per caption, in order."""
    return list({clip.caption: clip for clip in reversed(clips)}.values())[::-1]
