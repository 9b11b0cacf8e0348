"""A folder of captioned videos as a source of clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.files import whole_file
from dit_compress.data.clips import Clip, Split, find_broken, read_folder, split_of
from dit_compress.data.source import Data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress_plugins.data_videos import VideosOptions

_BROKEN = "broken.json"


class Videos(Data):
    """Reads the folder as it is; only the names of broken files are cached."""

    def __init__(self, options: VideosOptions) -> None:
        """Keep the options; nothing is read yet."""
        self.options = options
        self.place = str(options.path)
        self.workers = options.workers

    def prepare(self, cache: Path) -> None:
        """Open every video that was not opened before, and note which ones are broken or too short.

        Raises:
            UserError: something is wrong with the folder, or more than ``max_broken`` files are.
        """
        known = _load(cache)
        clips = self._read({})
        stamps = {str(clip.path): _stamp(clip.path) for clip in clips}
        seen = {name: known[name] for name, stamp in stamps.items() if known.get(name, {}).get("stamp") == stamp}
        already = sum(record["problem"] is not None for record in seen.values())
        fresh = [clip.path for clip in clips if str(clip.path) not in seen]
        problems = find_broken(
            fresh,
            max_broken=self.options.max_broken - already,
            frames=self.options.frames,
            fps=self.options.fps,
            workers=self.options.workers,
        )
        for path in fresh:
            seen[str(path)] = {"stamp": stamps[str(path)], "problem": problems.get(path)}
        cache.mkdir(parents=True, exist_ok=True)
        with whole_file(cache / _BROKEN) as partial:
            partial.write_text(json.dumps(seen, sort_keys=True), encoding="utf-8")

    def manifest(self, cache: Path) -> list[dict[str, Any]]:
        """Describe file, size, time and caption of every clip that is not broken."""
        records = []
        for clip in self._read(_load(cache)):
            size_bytes, time_ns = _stamp(clip.path)
            records.append(
                {"file": str(clip.path), "size_bytes": size_bytes, "time_ns": time_ns, "caption": clip.caption}
            )
        return records

    def clips(self, cache: Path, split: Split) -> Sequence[Clip]:
        """Return the clips of one split, in the order of the captions."""
        fraction, by_file = self.options.test_fraction, self.options.split_by == "file"
        clips = self._read(_load(cache))
        return [clip for clip in clips if split_of(clip.path.name if by_file else clip.caption, fraction) == split]

    def _read(self, known: dict[str, dict[str, Any]]) -> list[Clip]:
        options = self.options
        broken = {Path(name) for name, record in known.items() if record["problem"] is not None}
        return read_folder(options.path, frames=options.frames, size=options.size, fps=options.fps, leave_out=broken)


def _load(cache: Path) -> dict[str, dict[str, Any]]:
    path = cache / _BROKEN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _stamp(path: Path) -> list[int]:
    """Return the size in bytes and time of the last change in nanoseconds."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
