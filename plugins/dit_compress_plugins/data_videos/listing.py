"""The clips of a path, whatever it is: a folder, a table, shards, or what DAVIS calls ``JPEGImages``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.data.clips import CAPTIONS, Clip, clips_of_records, raise_all, read_folder
from dit_compress.data.frames import entries_of
from dit_compress.data.video import IMAGES
from dit_compress_plugins.data_videos.shards import TAR, read_shards
from dit_compress_plugins.data_videos.tables import READERS, read_table

if TYPE_CHECKING:
    from collections.abc import Collection

    from dit_compress.data.clips import Split

FRAMES, SETS = "JPEGImages", "ImageSets"
"""DAVIS' folders of frames, by resolution, and of lists of clips."""
_SPLITS: dict[str, Split] = {"train": "train", "val": "test"}


def listed(path: Path, leave_out: Collection[Path] = (), **taken: Any) -> list[Clip]:
    """Return the clips in the order of their list, or by name.

    Args:
        path: a folder or a file.
        leave_out: clips to pass over.
        taken: ``frames``, ``size`` and ``fps`` of each clip.

    Raises:
        UserError: the path is none of these, or something is wrong with it; all independent faults at once.
    """
    if path.suffix in READERS and path.is_file():
        problems: list[UserError] = []
        rows = read_table(path, problems)
        found = clips_of_records(rows, path.parent, problems, leave_out=leave_out, **taken)
    elif path.suffix == TAR or (not (path / CAPTIONS).exists() and any(path.glob(f"*{TAR}"))):
        found = [clip for clip in read_shards(path, **taken) if clip.path not in leave_out]
    elif folders := frame_folders(path):
        found = [Clip(folder, _caption(folder), None, **taken) for folder in folders if folder not in leave_out]
    else:
        if path.is_file():
            what = f"a file, and none of {', '.join((*READERS, TAR))}"
            raise UserError(what, where=str(path), mend=f"Give a folder with {CAPTIONS}, or such a file")
        return read_folder(path, leave_out=leave_out, **taken)
    if not found:
        raise UserError("no clips", where=str(path), mend="Add some, or correct the path")
    return found


def frame_folders(path: Path) -> list[Path]:
    """Return the folders of frames in a folder without captions, or of DAVIS' one resolution; none where it has none.

    DAVIS' ``JPEGImages`` stands for the folder that it lies in; it may hold the clips without a resolution between.

    Raises:
        UserError: DAVIS' folder with several resolutions.
    """
    if not path.is_dir() or (path / CAPTIONS).exists():
        return []
    inside = path if path.name == FRAMES else path / FRAMES
    if inside.is_dir():
        folders = _folders(inside)
        if any(_has_frames(folder) for folder in folders):
            return folders
        if len(folders) > 1:
            names = ", ".join(folder.name for folder in folders)
            mend = f"Name one in 'path', as {folders[0]}"
            raise UserError(f"frames in several resolutions: {names}", where=str(inside), mend=mend)
        path = folders[0] if folders else path
    folders = _folders(path)
    return folders if any(_has_frames(folder) for folder in folders) else []


def sets_of(path: Path) -> dict[str, Split]:
    """Return each clip's split by DAVIS' lists: ``train.txt``, and ``val.txt`` for the test split, of all years.

    Lists name clips, or frames of clips, one a line.

    Raises:
        UserError: no lists, one that can't be read, or a clip in both.
    """
    path = path.parent if path.parent.name == FRAMES else path
    root = path.parent if path.name == FRAMES else path
    lists = [file for file in sorted((root / SETS).rglob("*.txt")) if file.stem in _SPLITS]
    if not lists:
        mend = "Give DAVIS' folder, or split by 'caption' or 'file'"
        raise UserError(
            "'split_by: sets', and there are no lists train.txt, val.txt", where=str(root / SETS), mend=mend
        )
    found: dict[str, Split] = {}
    problems: list[UserError] = []
    for file in lists:
        for line in filter(str.strip, _text(file, problems).splitlines()):
            frame = Path(line.split()[0])
            name = frame.parent.name if frame.suffix else frame.name
            if found.setdefault(name, _SPLITS[file.stem]) != _SPLITS[file.stem]:
                problems.append(UserError(f"{name!r} stands in both splits", where=str(file), mend="Delete it in one"))
    raise_all(problems)
    return found


def _text(file: Path, problems: list[UserError]) -> str:
    """Read a list; nothing where that fails, which goes to ``problems``."""
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(UserError(f"the list can't be read ({error})", where=str(file), mend="Save it as UTF-8"))
        return ""


def need_listed(clips: list[Clip], sets: dict[str, Split], place: Path) -> None:
    """Raise a UserError where lists name clips that are not there."""
    there = {clip.path.name for clip in clips}
    raise_all(
        [
            UserError(f"{name!r} stands in {SETS}, and is not there", where=str(place), mend="Delete it in the list")
            for name in sets
            if name not in there
        ]
    )


def _folders(path: Path) -> list[Path]:
    return [folder for folder in entries_of(path) if folder.is_dir() and not folder.name.startswith(".")]


def _has_frames(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGES for path in entries_of(folder))


def _caption(folder: Path) -> str:
    """Name a clip that has no caption as its folder is named, in words."""
    return folder.name.replace("-", " ").replace("_", " ")
