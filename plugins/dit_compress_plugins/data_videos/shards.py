"""WebDataset: tar files in which ``0001.mp4`` and ``0001.txt`` (or ``0001.json`` with a ``caption``) make a clip.

Clips are decoded from the tar file as it lies there: each is read by its offset.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.data.clips import Clip, raise_all
from dit_compress.data.video import IMAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

TAR = ".tar"
_VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})
_TEXTS = (".txt", ".caption", ".json")

Member = tuple[str, int, int]
"""Name, offset and size of a file in a tar."""


@dataclass(frozen=True)
class TarClip(Clip):
    """A clip in a tar. tar: that file. offset, length: of the clip in it. ``path`` is the clip's name behind it."""

    tar: Path = field(default=Path(), compare=False)
    offset: int = field(default=0, compare=False)
    length: int = field(default=0, compare=False)

    def opened(self) -> IO[bytes]:
        """Read the clip's bytes."""
        return io.BytesIO(_bytes(self.tar, self.offset, self.length))

    def stamp(self) -> tuple[int, int]:
        """Return the clip's size, and the time of the tar's last change."""
        return self.length, self.tar.stat().st_mtime_ns


def read_shards(path: Path, **taken: Any) -> list[TarClip]:
    """Return the clips of a tar file, or of all in a folder, by the files' names.

    Raises:
        UserError: a tar that can't be read; a clip without a caption, a caption without a clip, a clip twice; all at
            once.
    """
    clips: list[TarClip] = []
    problems: list[UserError] = []
    for tar in sorted(path.glob(f"*{TAR}")) if path.is_dir() else [path]:
        try:
            for key, members in _samples(tar).items():
                clips += _clip(tar, key, members, problems, **taken)
        except UserError as error:
            problems.append(error)
    raise_all(problems)
    return clips


def _samples(tar: Path) -> dict[str, dict[str, Member]]:
    """Return the members of a tar by clip and ending; a key is a name up to the first dot of its last part."""
    stat = tar.stat() if tar.is_file() else None
    if stat is None:
        raise UserError("no such file", where=str(tar), mend="Correct the path")
    found: dict[str, dict[str, Member]] = {}
    for name, offset, size in _members(tar, stat.st_size, stat.st_mtime_ns):
        folder, _, leaf = name.rpartition("/")
        key, _, ending = leaf.partition(".")
        found.setdefault(f"{folder}/{key}".lstrip("/"), {})[f".{ending.lower()}"] = (name, offset, size)
    return found


@lru_cache(maxsize=4096)
def _members(tar: Path, size: int, time_ns: int) -> tuple[Member, ...]:  # noqa: ARG001 - a changed file is another
    try:
        with tarfile.open(tar, "r:") as archive:
            return tuple((item.name, item.offset_data, item.size) for item in archive if item.isfile())
    except (OSError, tarfile.TarError) as error:
        mend = "Write it anew, without compression: clips are read from the middle"
        raise UserError(f"the tar file can't be read ({error})", where=str(tar), mend=mend) from error


def _clip(
    tar: Path, key: str, members: dict[str, Member], problems: list[UserError], **taken: Any
) -> Iterator[TarClip]:
    """Yield the clip of a key, where it is one; what is wrong goes to ``problems``."""
    media = [members[ending] for ending in members if ending in _VIDEOS | IMAGES]
    text = next((ending for ending in _TEXTS if ending in members), None)
    where = str(tar / key)
    if not media and text is None:
        return  # what other tools keep beside clips
    if len(media) != 1:
        what = f"{len(media)} videos or images" if media else "a caption without a video or image"
        problems.append(UserError(what, where=where, mend="Give each key one"))
    caption = None if text is None else _caption(_bytes(tar, *members[text][1:]), text)
    if not caption:
        mend = "Add a .txt, or a .json with a 'caption', in UTF-8, or leave the clip out"
        problems.append(UserError("no caption", where=where, mend=mend))
    elif len(media) == 1:
        name, offset, size = media[0]
        yield TarClip(tar / name, caption, None, **taken, tar=tar, offset=offset, length=size)


def _caption(content: bytes, ending: str) -> str | None:
    """Return the caption in a text or JSON file; None where there is none."""
    try:
        text = content.decode("utf-8")
        if ending != ".json":
            return text.strip()
        record = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    caption = record.get("caption") if isinstance(record, dict) else None
    return caption.strip() if isinstance(caption, str) else None


def _bytes(tar: Path, offset: int, length: int) -> bytes:
    try:
        with tar.open("rb") as handle:
            handle.seek(offset)
            return handle.read(length)
    except OSError as error:
        mend = "Put it back, or correct its permissions"
        raise UserError(f"the tar file can't be read ({error})", where=str(tar), mend=mend) from error
