"""The world of moving shapes as a source of captioned clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.core.files import need_space, whole_folder
from dit_compress.data.clips import Clip, Split, read_folder, split_of, write_captions
from dit_compress.data.source import Data
from dit_compress.data.video import write_video
from dit_compress_plugins.data_shapes.render import render
from dit_compress_plugins.data_shapes.world import Scene, draw_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dit_compress_plugins.data_shapes import ShapesOptions

_FOLDER = "clips"
_FIRST = 8
"""Clips by which the size of all is estimated."""
_BLOCK = 4096
"""Bytes in which disks give room to a file."""


class Shapes(Data):
    """Draws the clips once, as mp4 files beside their captions; later reads that folder."""

    def __init__(self, options: ShapesOptions) -> None:
        """Keep the options; nothing is drawn yet."""
        self.options = options

    def scene(self, split: Split, index: int) -> Scene:
        """Return the scene of one clip."""
        options = self.options
        return draw_scene(
            options.seed,
            split,
            index,
            size=options.size,
            max_objects=options.max_objects,
            test_fraction=options.test_fraction,
            grid=options.grid,
            alike=options.alike,
        )

    def prepare(self, cache: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Draw and encode every clip, unless they are there; ``progress(done, total)`` after each.

        Raises:
            UserError: by the size of the first few, the disk does not hold all.
        """
        folder = cache / _FOLDER
        if folder.exists():
            return
        records = []
        total = self.options.num_clips + self.options.num_test
        with whole_folder(folder) as partial:
            for record in self._draw(partial):
                records.append(record)
                if len(records) == min(_FIRST, total):
                    _need_space_for(partial, records, total)
                if progress is not None:
                    progress(len(records), total)
            write_captions(partial, records)

    def manifest(self, cache: Path) -> list[dict[str, Any]]:
        """Describe file, size and caption of every clip."""
        return [
            {"file": clip.path.name, "size_bytes": clip.path.stat().st_size, "caption": clip.caption}
            for clip in self._read(cache)
        ]

    def clips(self, cache: Path, split: Split) -> Sequence[Clip]:
        """Return the clips of one split, in the order they were drawn."""
        return [clip for clip in self._read(cache) if split_of(clip.caption, self.options.test_fraction) == split]

    def _draw(self, folder: Path) -> Iterator[dict[str, Any]]:
        options = self.options
        splits: tuple[tuple[Split, int], ...] = (("train", options.num_clips), ("test", options.num_test))
        for split, count in splits:
            for index in range(count):
                scene = self.scene(split, index)
                file = f"{split}_{index:06d}.mp4"
                write_video(folder / file, render(scene, options.frames, options.size), options.fps)
                yield {"file": file, "caption": scene.caption(), "truth": scene.truth(options.size)}

    def _read(self, cache: Path) -> list[Clip]:
        return read_folder(cache / _FOLDER, frames=self.options.frames, size=self.options.size)


def _need_space_for(folder: Path, records: Sequence[dict[str, Any]], total: int) -> None:
    """Refuse a number of clips that the disk does not hold, of the size of those that are there."""
    sizes = [(folder / record["file"]).stat().st_size for record in records]
    each = sum(-(-size // _BLOCK) * _BLOCK + len(str(record)) for size, record in zip(sizes, records, strict=True))
    need_space(
        folder.parent,
        each * (total - len(records)) // len(records),
        f"{total} clips",
        "set a smaller 'num_clips', 'frames' or 'size'",
    )
