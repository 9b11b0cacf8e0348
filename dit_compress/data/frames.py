"""A folder of frames as one clip: ``00000.jpg``, ``00001.jpg`` … as DAVIS has them; and what an image may be.

Shapes: F frames of Y × X pixels, uint8, red green blue.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.data.video import IMAGES, Facts, look_at_video, need_frames, need_plain, read_video

if TYPE_CHECKING:
    from pathlib import Path

_OUT = "or leave the clip out"


def entries_of(folder: Path) -> list[Path]:
    """Return what a folder holds, by name; raise a UserError where that can't be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        mend = f"Correct its permissions, {_OUT}"
        raise UserError(f"the folder can't be read ({error.strerror})", where=str(folder), mend=mend) from error


def frame_files(folder: Path) -> list[Path]:
    """Return a folder's frames in the order of the numbers that their names end in.

    Raises:
        UserError: a folder that can't be read, or without frames; a name without a number, a number twice, a gap; all
            that hold, together.
    """
    images = [path for path in entries_of(folder) if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
    if not images:
        raise UserError("a folder without frames", where=str(folder), mend=f"Put images there, {_OUT}")
    problems: list[UserError] = []
    numbered: dict[int, Path] = {}
    for path in images:
        digits = re.search(r"\d+$", path.stem)
        if digits is None:
            what, mend = f"a frame without a number, {path.name!r}", "Name frames 00000.jpg, 00001.jpg …"
        elif (number := int(digits[0])) in numbered:
            what = f"frame {number} twice, {numbered[number].name!r} and {path.name!r}"
            mend = "Delete one of the two"
        else:
            numbered[number] = path
            continue
        problems.append(UserError(what, where=str(folder), mend=mend))
    for before, after in pairwise(sorted(numbered)):
        if after > before + 1:
            what = f"a gap between {numbered[before].name!r} and {numbered[after].name!r}"
            problems.append(UserError(what, where=str(folder), mend=f"Put the frames there, {_OUT}"))
            break
    if problems:
        raise UserError.join(problems)
    return [numbered[number] for number in sorted(numbered)]


def look_at_frames(folder: Path, most: int = 1) -> Facts:
    """Decode the first frame, read the headers of all; ``frames`` of the facts is at most ``most``.

    Raises:
        UserError: what :func:`frame_files` says; an image that can't be read, of 16 bits, or with an alpha channel;
            frames of several sizes; of each the first such file, all together.
    """
    files = frame_files(folder)
    problems: dict[str, UserError] = {}
    sizes: dict[tuple[int, int], Path] = {}
    for path in files:
        try:
            sizes.setdefault(_header(path), path)
        except UserError as error:
            problems.setdefault(error.problems[0][1].partition(" (")[0], error)
    if len(sizes) > 1:
        (one, _), (other, path) = list(sizes.items())[:2]
        what = f"frames of {one[0]}x{one[1]} and of {other[0]}x{other[1]} pixels, such as {path.name!r}"
        problems[what] = UserError(what, where=str(folder), mend=f"Make them of one size, {_OUT}")
    if problems:
        raise UserError.join(list(problems.values()))
    first = look_at_video(files[0])
    return Facts(min(most, len(files)), first.height, first.width)


def read_frames(folder: Path, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Read the first ``frames`` of a folder ``[F,Y,X,3]``, as :func:`dit_compress.data.video.read_video` fits them."""
    files = frame_files(folder)
    need_frames(folder, len(files), frames, None)
    return np.concatenate([read_video(path, 1, size) for path in files[:frames]])


def _header(path: Path) -> tuple[int, int]:
    """Return height and width of an image as it is stored; raise a UserError where it is no plain one."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0].codec_context
            if stream.format is None:
                raise UserError("the image can't be read (it is none)", where=str(path), mend=f"Replace it, {_OUT}")
            need_plain(path, stream.format)
            return stream.height, stream.width
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"the image can't be read ({error})", where=str(path), mend=f"Replace it, {_OUT}") from error
