"""One video file, or an image: decoded to frames of a size and a rate, looked at, written.

Whatever is wrong with a file is a ``UserError`` that names it.

Shapes: F frames of Y × X pixels, uint8, red green blue.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.core.files import whole_file, write_json
from dit_compress.core.limits import MAX_FPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import av

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Endings of the names of files that are one image."""

# Without look-ahead: with B-frames and mbtree, equal frames now and then gave other bytes, even on one thread.
_X264 = "threads=1:bframes=0:rc-lookahead=0:mbtree=0:scenecut=0:colorprim=bt709:transfer=bt709:colormatrix=bt709"
_ENCODER = {"crf": "10", "preset": "veryfast", "x264-params": _X264}


def read_video(
    path: Path, frames: int, size: tuple[int, int], fps: float | None = None, content: IO[bytes] | None = None
) -> np.ndarray:
    """Read the first frames of a video at a frame rate, upright, resized to cover ``size`` and cropped at the centre.

    Args:
        path: any file that FFmpeg reads.
        frames: F, how many frames are wanted.
        size: (Y, X).
        fps: frames a second of the result: of each moment, the frame then on screen. None: every frame.
        content: of the file, where that is a part of another one.

    Returns:
        ``[F,Y,X,3]`` uint8.

    Raises:
        UserError: the file can't be decoded, or is too short.
    """
    import av

    try:
        with _opened(path, content) as container:
            pixels = [fitted(frame, size) for _, frame in islice(_shown(container, path, fps), frames)]
    except (av.FFmpegError, OSError) as error:
        raise _broken(path, error, _MEND_LATER) from error
    need_frames(path, len(pixels), frames, fps)
    return np.stack(pixels)


@dataclass(frozen=True)
class Facts:
    """Frames of a file, as far as they were counted, and their height and width as they are shown."""

    frames: int
    height: int
    width: int


def look_at_video(path: Path, most: int = 1, fps: float | None = None, content: IO[bytes] | None = None) -> Facts:
    """Decode the first frame and count up to ``most`` at ``fps``; raise ``UserError`` unless the file is a video.

    Frames are counted by the file's packets, which costs no decoding; where that leaves a doubt, by decoding.
    """
    import av

    try:
        with _opened(path, content) as container:
            first = next(_decode(container, path), None)
            if first is None:
                raise UserError("the video has no frames", where=str(path), mend=_MEND_BROKEN)
            height, width = _upright(first[1])
            need_plain(path, first[1].format)
        if most <= 1 or _surely_has(path, most, fps, content):
            return Facts(most, height, width)
        with _opened(path, content) as container:
            return Facts(sum(1 for _ in islice(_shown(container, path, fps), most)), height, width)
    except (av.FFmpegError, OSError) as error:
        raise _broken(path, error) from error


def _opened(path: Path, content: IO[bytes] | None) -> av.container.InputContainer:
    import av

    if content is None:
        return av.open(str(path))
    content.seek(0)
    return av.open(content)


def _surely_has(path: Path, frames: int, fps: float | None, content: IO[bytes] | None) -> bool:
    """Tell whether the packets alone show that there is a frame more than wanted."""
    count, first, last = 0, None, 0.0
    with _opened(path, content) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.pts is None or not packet.size:
                continue
            seconds = float(packet.pts * packet.time_base)
            first = seconds if first is None else min(first, seconds)
            last, count = max(last, seconds), count + 1
            if count > frames if fps is None else (last - first) * fps > frames + 1:
                return True
    return False


def need_frames(path: Path, count: int, frames: int, fps: float | None) -> None:
    """Raise a UserError where a video is too short."""
    if count < frames:
        rate = "" if fps is None else f" at {fps:g} frames a second"
        raise UserError(
            f"the video has {count} frames{rate}, {frames} are wanted",
            where=str(path),
            mend="Ask for fewer frames or a higher fps, or take the clip out of the captions",
        )


def need_plain(path: Path, pixels: Any) -> None:
    """Raise a UserError where an image is of more than 8 bits a channel, or has an alpha channel.

    pixels: its format, an ``av.VideoFormat``. Videos may be of more bits.
    """
    if path.suffix.lower() not in IMAGES:
        return
    if max(component.bits for component in pixels.components) > 8:
        raise UserError("an image of 16 bits a channel", where=str(path), mend="Save it with 8 bits, or leave it out")
    if any(component.is_alpha for component in pixels.components):
        raise UserError("an image with an alpha channel", where=str(path), mend="Save it without one, or leave it out")


def _shown(container: av.container.InputContainer, path: Path, fps: float | None) -> Iterator[tuple[float, Any]]:
    """Yield the file's frames at a rate."""
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
    if not 0 < fps <= MAX_FPS:
        raise UserError(f"{fps:g} frames a second", where=str(path), mend=f"Choose up to {MAX_FPS}")
    if height % 2 or width % 2:
        raise UserError(f"a frame of {height}x{width} pixels", where=str(path), mend="Make both sides even")
    with whole_file(path) as partial:
        _encode(partial, frames_FYX3, fps)


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
    """Yield seconds since the first frame, and the frame."""
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
    """Yield at each moment k / fps the frame that is on screen then; the last one stays as long as the one before."""
    shown, since, lasts, count, slack = None, 0.0, 0.0, 0, 1e-3
    for seconds, frame in decoded:
        while shown is not None and count / fps < seconds - slack:
            yield count / fps, shown
            count += 1
        lasts, shown, since = seconds - since, frame, seconds
    while shown is not None and count / fps < since + max(lasts, slack * 2) - slack:
        yield count / fps, shown
        count += 1


def fitted(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """Turn as the file demands, resize to cover ``size``, keeping the aspect, and crop the centre: ``[Y,X,3]``.

    Telephones store what was filmed upright as it came from the sensor, lying, with a note how to turn it.
    """
    turns = _turns(frame)
    height, width = size if turns % 2 == 0 else size[::-1]
    scale = max(height / frame.height, width / frame.width)
    cover_y, cover_x = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    way = "AREA" if scale < 1 else "BICUBIC"
    pixels = frame.reformat(width=cover_x, height=cover_y, format="rgb24", interpolation=way, threads=1).to_ndarray()
    top, left = (cover_y - height) // 2, (cover_x - width) // 2
    return np.rot90(pixels[top : top + height, left : left + width], turns)


def _turns(frame: av.VideoFrame) -> int:
    """Return the quarters by which a frame is to be turned, against the clock as numpy's."""
    return round((frame.rotation or 0) / 90)


def _upright(frame: av.VideoFrame) -> tuple[int, int]:
    """Return height and width of a frame as it is shown."""
    return (frame.height, frame.width) if _turns(frame) % 2 == 0 else (frame.width, frame.height)


_MEND_BROKEN = "Replace the file, take it out of the captions, or raise max_broken"


_MEND_LATER = "Replace the file or take it out of the captions (only the first frame is looked at before a run)"


def _broken(path: Path, error: Exception, mend: str = _MEND_BROKEN) -> UserError:
    return UserError(f"the video can't be decoded ({error})", where=str(path), mend=mend)


NUM_CAPTIONS = 4

FPS = 8.0


class Gallery:
    """Keeps the videos of the first few captions, by column.

    folder: the step's. name: of the folder below, and among the step's files; the report shows ``videos`` of all steps
    in one table. most: rows that are kept.
    """

    def __init__(self, folder: Path, name: str = "videos", most: int = NUM_CAPTIONS) -> None:
        self.folder, self.name, self.most = folder / name, name, most
        self.index: list[dict[str, str]] = []
        self.captions: list[str] = []

    def add(self, caption: str, columns: Mapping[str, np.ndarray]) -> None:
        """Add one row: uint8 videos ``[F,Y,X,3]`` by the column they belong to; ignored once there are enough rows."""
        if caption in self.captions or len(self.captions) >= self.most:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for column, video in columns.items():
            name = f"{len(self.captions)}_{len(self.index)}.mp4"
            write_video(self.folder / name, video, FPS)
            self.index.append({"caption": caption, "column": column, "file": name})
        self.captions.append(caption)
        write_json(self.folder / "videos.json", self.index)

    def files(self) -> dict[str, str]:
        """Name the files for a step's result."""
        return {self.name: f"{self.name}/videos.json"} if self.index else {}


def evenly(count: int, total: int) -> list[int]:
    """Return ``count`` places among ``total``, the middles of equal parts; places come twice where there are fewer."""
    return [int((place + 0.5) * total / count) for place in range(count)]
