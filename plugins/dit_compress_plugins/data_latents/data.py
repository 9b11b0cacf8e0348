"""Shards of latents as a source of clips without pixels."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json, write_json
from dit_compress.data.buckets import folder_of, joined
from dit_compress.data.clips import EncodedClip, Split, split_of
from dit_compress.data.shards import INDEX, Column, Shards
from dit_compress.data.source import Data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dit_compress.data.buckets import Rows
    from dit_compress.data.clips import Clip
    from dit_compress_plugins.data_latents import LatentsOptions

_VERIFIED = "verified.json"
NAME = "latent"


class Latents(Data):
    """Reads the folder as it is."""

    def __init__(self, options: LatentsOptions) -> None:
        """Keep the options; nothing is read yet."""
        self.options = options
        self.place = str(options.path)

    def prepare(self, cache: Path) -> None:
        """Compare every shard with its checksum, once for as long as the files stay as they are.

        Raises:
            UserError: no finished folder of shards, or one that is damaged, or holds no latents.
        """
        stamp = []
        for shards in self._shards().values():
            names = [INDEX, *(entry["file"] for entry in shards.index["shards"])]
            stats = [shards.folder.joinpath(name).stat() for name in names]
            stamp += [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)]
        if (cache / _VERIFIED).is_file() and read_json(cache / _VERIFIED) == stamp:
            return
        for shards in self._shards().values():
            if NAME not in shards.names():
                raise UserError(
                    f"the shards hold {', '.join(shards.names())}, no {NAME}",
                    where=str(shards.folder),
                    mend="Give a folder of latents",
                )
            shards.verify()
        cache.mkdir(parents=True, exist_ok=True)
        write_json(cache / _VERIFIED, stamp)

    def manifest(self, cache: Path) -> list[dict[str, Any]]:  # noqa: ARG002 - everything stands in the folder
        """Name, caption, shard and split of every sample."""
        records = []
        for shards in self._shards().values():
            files = [entry["sha256"] for entry in shards.index["shards"] for _ in range(entry["count"])]
            records += [
                {
                    "file": record.get("file", ""),
                    "caption": record["caption"],
                    "shard": digest,
                    "split": self._split(record, place),
                }
                for place, (record, digest) in enumerate(zip(shards.samples(), files, strict=True))
            ]
        return records

    def clips(self, cache: Path, split: Split) -> list[EncodedClip]:  # noqa: ARG002 - as above
        """Return the samples of one split; their captions are there, their pixels are not."""
        options = self.options
        return [
            EncodedClip(
                path=options.path / _file(record, place),
                caption=record["caption"],
                truth=record.get("truth"),
                frames=frames,
                size=(height, width),
                fps=options.fps,
                place=place,
            )
            for (frames, height, width), shards in self._shards().items()
            for place, record in enumerate(shards.samples())
            if self._split(record, place) == split
        ]

    def _split(self, record: Mapping[str, Any], place: int) -> Split:
        options = self.options
        name = PurePath(_file(record, place)).name if options.split_by == "file" else record["caption"]
        return split_of(name, options.test_fraction)

    def encoded(self, cache: Path, split: Split, vae: str) -> Rows:
        """Return the latents of one split; raise a UserError unless the bundle's VAE encoded them."""
        return self._column(cache, split, NAME, {"vae": vae})

    def firsts(self, cache: Path, split: Split, condition: str) -> Rows:
        """Return the latents of first frames; raise a UserError where the shards hold none of that kind."""
        for shards in self._shards().values():
            if condition not in shards.names():
                raise UserError(
                    f"the shards hold {', '.join(shards.names())}, and the model takes {condition!r}",
                    where=str(shards.folder),
                    mend="Encode the clips again, with 'first_frame: true' in the recipe's 'data'",
                )
        return self._column(cache, split, condition, {})

    def _column(self, cache: Path, split: Split, name: str, made_by: Mapping[str, str]) -> Rows:
        shards = self._shards()

        def column(clips: Sequence[Clip]) -> Column:
            places = [clip.place for clip in clips if isinstance(clip, EncodedClip)]
            return shards[clips[0].shape].need(made_by).column(name, places)

        return joined(self.clips(cache, split), column)

    def _shards(self) -> dict[tuple[int, int, int], Shards]:
        """Open the folder, or of several sizes those of each."""
        options = self.options
        return {video: Shards(folder_of(options.path, video, len(options.videos))) for video in options.videos}


def _file(record: Mapping[str, Any], place: int) -> str:
    """Return the name of a sample's clip; one by its place where none was kept."""
    return record.get("file", f"sample-{place}")
