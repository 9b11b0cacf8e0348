"""Captioned videos, images and folders of frames as a source of clips."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import whole_file
from dit_compress.data.clips import Clip, Split, find_broken, need_length, split_of
from dit_compress.data.source import Data
from dit_compress.data.video import Facts
from dit_compress_plugins.data_videos.buckets import bucket_of, need_all, need_bucket
from dit_compress_plugins.data_videos.listing import listed, need_listed, sets_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress_plugins.data_videos import VideosOptions

    Known = Mapping[str, Mapping[str, Any]]

_LOOKED_AT = "broken.json"


class Videos(Data):
    """Reads the clips as they lie there; only what was found by looking at them is cached."""

    def __init__(self, options: VideosOptions) -> None:
        """Keep the options; nothing is read yet."""
        self.options = options
        self.place = str(options.path)
        self.workers = options.workers

    def prepare(self, cache: Path) -> None:
        """Open every clip that was not opened before, and note which are broken or too short, and their sizes.

        Raises:
            UserError: something is wrong with the list of clips, or with more than ``max_broken`` clips; no clip falls
                into one of the sizes.
        """
        known, sizes = _load(cache), self.options.sizes
        clips = self._listed({})
        stamps = {str(clip.path): list(clip.stamp()) for clip in clips}
        seen = {name: known[name] for name, stamp in stamps.items() if known.get(name, {}).get("stamp") == stamp}
        facts = {name: Facts(**record["facts"]) for name, record in seen.items() if "facts" in record}
        problems: list[UserError] = []
        fresh = [clip for clip in clips if str(clip.path) not in seen]
        try:
            broken = self._look(fresh, len(_broken(seen)), facts)
        except UserError as error:
            problems.append(error)
        else:
            for name in (str(clip.path) for clip in fresh):
                sized = {"facts": asdict(facts[name])} if name in facts else {}
                seen[name] = {"stamp": stamps[name], "problem": broken.get(Path(name)), **sized}
        if sizes and (facts or not problems):
            problems += need_all(sizes, list(facts.values()), self.place)
        if problems:
            raise UserError.join(problems)
        cache.mkdir(parents=True, exist_ok=True)
        with whole_file(cache / _LOOKED_AT) as partial:
            partial.write_text(json.dumps(seen, sort_keys=True), encoding="utf-8")

    def _look(self, clips: Sequence[Clip], already: int, facts: dict[str, Facts]) -> dict[Path, str]:
        """Open clips; return what is wrong with some. Of several sizes, the good clips' facts go to ``facts``.

        already: how many are known to be broken.
        """
        options, sizes = self.options, self.options.sizes

        def need(clip: Clip, found: Facts) -> None:
            if not sizes:
                need_length(clip, found)
                return
            need_bucket(clip, found, sizes)
            facts[str(clip.path)] = found

        return find_broken(
            clips,
            need,
            max_broken=options.max_broken - already,
            most=max(2, *(frames for frames, *_ in sizes)) if sizes else 0,
            workers=options.workers,
        )

    def manifest(self, cache: Path) -> list[dict[str, Any]]:
        """Describe file, size, time, caption, split of every clip that is not broken; bucket and rate if stated."""
        records = []
        sets = self._sets()
        for clip in self._read(_load(cache)):
            size_bytes, time_ns = clip.stamp()
            record = {"file": str(clip.path), "size_bytes": size_bytes, "time_ns": time_ns, "caption": clip.caption}
            bucket = {"bucket": list(clip.shape)} if self.options.sizes else {}
            rate = {} if clip.fps is None else {"fps": clip.fps}
            records.append(record | bucket | rate | {"split": self._split(clip, sets)})
        return records

    def clips(self, cache: Path, split: Split) -> Sequence[Clip]:
        """Return the clips of one split, in the order of their list."""
        sets = self._sets()
        return [clip for clip in self._read(_load(cache)) if self._split(clip, sets) == split]

    def _split(self, clip: Clip, sets: Mapping[str, Split]) -> Split:
        options = self.options
        if options.split_by == "sets":
            return sets[clip.path.name]
        return split_of(clip.path.name if options.split_by == "file" else clip.caption, options.test_fraction)

    def _sets(self) -> dict[str, Split]:
        return sets_of(self.options.path) if self.options.split_by == "sets" else {}

    def _listed(self, known: Known) -> list[Clip]:
        """Return the clips, without the broken ones among the known; of sets, those that stand in one."""
        options = self.options
        broken = _broken(known)
        taken: dict[str, Any] = {"frames": options.frames, "size": options.size, "fps": options.fps}
        if options.split_by != "sets":
            return listed(options.path, broken, **taken)
        clips, sets = listed(options.path, **taken), self._sets()
        need_listed(clips, sets, options.path)
        return [clip for clip in clips if clip.path.name in sets and clip.path not in broken]

    def _read(self, known: Known) -> list[Clip]:
        """Return the clips that are not broken, each with the size of its bucket."""
        return [self._sized(clip, known.get(str(clip.path), {}).get("facts")) for clip in self._listed(known)]

    def _sized(self, clip: Clip, facts: Mapping[str, int] | None) -> Clip:
        """Return a clip with the size of its bucket; as it is where it came after all were looked at."""
        if not self.options.sizes or facts is None:
            return clip
        bucket = bucket_of(Facts(**facts), self.options.sizes)
        assert bucket is not None, "need_bucket refused it"
        return replace(clip, frames=bucket[0], size=bucket[1:])


def _broken(known: Known) -> set[Path]:
    return {Path(name) for name, record in known.items() if record["problem"] is not None}


def _load(cache: Path) -> dict[str, dict[str, Any]]:
    path = cache / _LOOKED_AT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
