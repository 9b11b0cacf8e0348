"""Captioned clips on disk: videos, images or folders of frames beside one ``captions.jsonl``.

A line of ``captions.jsonl`` is ``{"file": "0001.mp4", "caption": "a dog runs", "truth": {...}}``; ``truth``
may be missing. Whatever is wrong with a folder is a ``UserError`` that names the file, and the line.

Shapes: F frames of Y × X pixels, uint8, red green blue.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, Literal

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_data, whole_file
from dit_compress.data.frames import entries_of, look_at_frames, read_frames
from dit_compress.data.jsonl import read_object
from dit_compress.data.video import look_at_video, need_frames, read_video

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from dit_compress.data.video import Facts

CAPTIONS = "captions.jsonl"
Split = Literal["train", "test"]
_log = logging.getLogger(__name__)

_NUM_NAMED = 10
"""The number of broken lines or files that one error names."""
_AT_A_TIME = 64
"""Videos that are checked between two looks at whether too many are broken to go on."""


@dataclass(frozen=True)
class Clip:
    """One captioned video; its pixels are decoded when asked for.

    A clip whose pixels do not come from ``path`` has a ``look`` of its own beside its ``pixels``.

    path: the video file, image, or folder of frames.
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width of what :meth:`pixels` gives."""
        return (self.frames, *self.size)

    def pixels(self) -> np.ndarray:
        """Decode ``[F,Y,X,3]`` uint8; raises ``UserError`` naming the file where it can't."""
        if self.path.is_dir():
            return read_frames(self.path, self.frames, self.size)
        return read_video(self.path, self.frames, self.size, self.fps, self.opened())

    def look(self, most: int) -> Facts:
        """Return the frames, up to ``most``, height and width of the file; raise ``UserError`` where it is broken."""
        if self.path.is_dir():
            return look_at_frames(self.path, most)
        return look_at_video(self.path, most, self.fps, self.opened())

    def opened(self) -> IO[bytes] | None:
        """Return the content, where it is a part of some other file than ``path``."""
        return None

    def stamp(self) -> tuple[int, int | str]:
        """Return the size in bytes and the time of the last change in nanoseconds.

        Of a folder of frames not a time but a digest of name, size and time of all that lies in it: frames may change
        places.
        """
        if not self.path.is_dir():
            stat = self.path.stat()
            return stat.st_size, stat.st_mtime_ns
        stats = [(path.name, path.stat()) for path in entries_of(self.path)]
        digest = sha256_data([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
        return sum(stat.st_size for _, stat in stats), digest

    def record(self) -> dict[str, Any]:
        """Describe the clip as JSON data."""
        about = {"file": self.path.name, "caption": self.caption}
        return about if self.truth is None else {**about, "truth": dict(self.truth)}

    def identity(self) -> list[Any]:
        """Return JSON that changes with the clip's pixels: the file's name, size and time, and what is taken of it."""
        return [self.path.name, *self.stamp(), self.frames, list(self.size), self.fps]


@dataclass(frozen=True)
class EncodedClip(Clip):
    """A clip of which the latent is known, and the pixels are not. place: its row among the latents."""

    place: int = field(default=0, compare=False)

    def pixels(self) -> np.ndarray:
        """Raise ``UserError``: there are none."""
        raise self._refusal()

    def look(self, most: int) -> Facts:  # noqa: ARG002 - as of any clip
        """Raise ``UserError``: there is no file to look at."""
        raise self._refusal()

    def stamp(self) -> tuple[int, int]:
        """Raise ``UserError``: there is no file to look at."""
        raise self._refusal()

    def _refusal(self) -> UserError:
        return UserError(
            "this data holds latents, and the step looks at pixels",
            where=str(self.path.parent),
            mend="Give the clips themselves, as video files, to steps that train or measure a VAE",
        )


def split_of(caption: str, test_fraction: float) -> Split:
    """Return the split a caption (or name) belongs to, by its hash: equal captions share a split."""
    share = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test_fraction else "train"


# ------------------------------------------------------------------ a folder


def read_folder(
    folder: Path, *, frames: int, size: tuple[int, int], fps: float | None = None, leave_out: Collection[Path] = ()
) -> list[Clip]:
    """Return the clips that a folder's ``captions.jsonl`` lists, in its order.

    Args:
        folder: mp4 files and ``captions.jsonl``.
        frames, size, fps: what each clip's ``pixels`` gives.
        leave_out: videos to pass over, as :func:`find_broken` gives them.

    Raises:
        UserError: no folder, no captions, a bad line (file and line), a caption without its video, a video that is
            outside the folder or has two captions; all lines' faults at once.
    """
    problems: list[UserError] = []
    clips = clips_of_records(
        _records(folder, problems), folder, problems, frames=frames, size=size, fps=fps, leave_out=leave_out
    )
    if not clips:
        raise UserError("no clips", where=str(folder / CAPTIONS), mend="Add a line for each video")
    return clips


def clips_of_records(
    records: Iterable[tuple[str, Mapping[str, Any]]],
    folder: Path,
    problems: list[UserError],
    *,
    frames: int,
    size: tuple[int, int],
    fps: float | None = None,
    leave_out: Collection[Path] = (),
) -> list[Clip]:
    """Return the clips that (file:line, ``{file, caption, truth}``) records list, files from ``folder`` on.

    Raises:
        UserError: a file that is not there, or has two captions; with ``problems``, what else is wrong with lines.
    """
    clips: list[Clip] = []
    first: dict[Path, str] = {}
    for where, record in records:
        path = folder / record["file"]
        if path in first:
            what = f"a second caption for '{record['file']}', the first is on line {first[path]}"
            problems.append(UserError(what, where=where, mend="Delete one of the lines"))
            continue
        first[path] = where.rpartition(":")[2]
        if path in leave_out:
            continue
        if problem := _absence(path, record["file"]):
            problems.append(UserError(problem, where=where, mend="Put the video there or delete the line"))
            continue
        clips.append(Clip(path, record["caption"], record.get("truth"), frames, size, fps))
    raise_all(problems)
    return clips


def need_length(clip: Clip, facts: Facts) -> None:
    """Raise a UserError where a file is too short for what its clip must give."""
    need_frames(clip.path, facts.frames, clip.frames, clip.fps)


def find_broken(
    clips: Sequence[Clip],
    need: Callable[[Clip, Facts], None] = need_length,
    *,
    max_broken: int = 0,
    most: int = 0,
    workers: int = 1,
) -> dict[Path, str]:
    """Look at each clip; path → what is wrong with it, logged as a warning.

    Args:
        clips: what each must give: so many frames, at a rate.
        need: given each clip that is not broken, and facts of it; refuses those that would not do.
        max_broken: how many may be broken.
        most: frames that are counted; those of each clip if 0.
        workers: threads that look.

    Raises:
        UserError: more than ``max_broken`` of them are broken or too short; names each, up to ten.
    """
    from concurrent.futures import ThreadPoolExecutor

    def look(clip: Clip) -> UserError | None:
        try:
            need(clip, clip.look(most or clip.frames))
        except UserError as error:
            return error
        return None

    broken: dict[Path, UserError] = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(clips), _AT_A_TIME):
            some = clips[start : start + _AT_A_TIME]
            broken |= {clip.path: error for clip, error in zip(some, pool.map(look, some), strict=True) if error}
            if len(broken) > max_broken + _NUM_NAMED:
                break
    problems = list(broken.values())
    if len(problems) > max_broken:
        raise_all(problems)
    for problem in problems:
        _log.warning("left out: %s", problem)
    return {path: str(error) for path, error in broken.items()}


def write_captions(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write ``captions.jsonl``, one record a line, keys in order."""
    lines = [json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n" for record in records]
    with whole_file(folder / CAPTIONS) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def _records(folder: Path, problems: list[UserError]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:line, record) of each good line; the bad ones go to ``problems``."""
    path = folder / CAPTIONS
    try:
        if not folder.is_dir():
            raise UserError("no such folder", where=str(folder), mend="Correct the path")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        seen = "an empty folder" if not any(folder.iterdir()) else f"a folder without {CAPTIONS}"
        raise UserError(
            seen, where=str(folder), mend=f'Write {CAPTIONS}, one {{"file": …, "caption": …}} a line'
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        mend = "Save them as UTF-8" if isinstance(error, UnicodeDecodeError) else "Correct the path or its permissions"
        raise UserError(f"the captions can't be read ({error})", where=str(path), mend=mend) from error
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() also breaks at U+0085, U+2028 and others
        if line.strip(" \t\r"):
            where = f"{path}:{number}"
            try:
                yield where, _record(line, where)
            except UserError as error:
                problems.append(error)


def _record(line: str, where: str) -> dict[str, Any]:
    record = read_object(line, where)
    for key in ("file", "caption"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise UserError(f"no '{key}'", where=where, mend=f"Give '{key}' as text")
    if not isinstance(record.get("truth", {}), dict):
        raise UserError("'truth' is not an object", where=where, mend="Give an object or leave it out")
    file = PurePath(record["file"])
    if file.is_absolute() or ".." in file.parts:
        raise UserError(
            f"'file' leads out of the folder: '{record['file']}'",
            where=where,
            mend="Give the path from this folder on, without '..'",
        )
    return record


def _absence(path: Path, name: str) -> str:
    """Return what is wrong where a caption's video is not there; nothing where it is."""
    try:
        return "" if path.exists() else f"a caption for '{name}', which is not there"
    except OSError as error:  # a name that is too long, a folder that may not be read
        return f"a caption for '{name[:40]}…', which can't be looked up ({error.strerror})"


def raise_all(problems: list[UserError]) -> None:
    """Raise one UserError of all problems, where there are any; of many, it names the first, of equal ones one."""
    problems = list({str(problem): problem for problem in problems}.values())
    if len(problems) > _NUM_NAMED:
        more = UserError(f"and {len(problems) - _NUM_NAMED} more like these")
        raise UserError.join([*problems[:_NUM_NAMED], more])
    if problems:
        raise UserError.join(problems)


def distinct(clips: Sequence[Clip]) -> list[Clip]:
    """Take one clip per caption, in order."""
    return list({clip.caption: clip for clip in reversed(clips)}.values())[::-1]
