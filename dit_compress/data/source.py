"""Sources of captioned clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_data
from dit_compress.plugin.options import keep_counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dit_compress.data.buckets import Rows
    from dit_compress.data.clips import Clip
    from dit_compress.plugin.options import Part


class Data(Protocol):
    """A source of captioned clips, or of their latents alone: ``pixels()`` of its clips raises then."""

    workers: int = 0
    """Threads that decode clips as a step needs their pixels; 0 decodes them once and keeps them."""
    place: str = ""
    """The folder that the user gave, for messages; the recipe's line where there is none."""

    def prepare(self, cache: Path) -> None:
        """Write what must be written once (``cache`` is content-addressed by the options)."""

    def manifest(self, cache: Path) -> Sequence[Mapping[str, Any]]:
        """Return one JSON record per sample: path, size, caption. Part of every step key that reads data."""

    def clips(self, cache: Path, split: Literal["train", "test"]) -> Sequence[Clip]:
        """Return the samples; a clip's pixels are decoded when asked for."""

    def encoded(self, cache: Path, split: Literal["train", "test"], vae: str) -> Rows | None:  # noqa: ARG002 - for those that have some
        """Return latents ``[C,T,H,W]`` by index, in the order of ``clips``; None where the engine encodes the clips.

        ``vae`` is the name of the latents that the bundle's VAE makes, as ``Bundle.latents`` gives it; UserError unless
        they are those.
        """
        return None

    def firsts(self, cache: Path, split: Literal["train", "test"], condition: str) -> Rows | None:  # noqa: ARG002 - for those that have some
        """Return the latents of first frames, as :meth:`encoded` those of clips.

        ``condition`` says which (``dit_compress.model.conditions``). None where the engine encodes the clips.
        """
        return None


def clips_of(part: Part, folder: Path, split: Literal["train", "test"]) -> Sequence[Clip]:
    """Return the samples of one split of a data part; raise a UserError where there are none."""
    source: Data = part.build()
    found = source.clips(folder, split)
    if not found:
        raise UserError(
            f"the data has no {split!r} clips",
            where=source.place or part.where,
            mend="Add clips with other captions, or change what share of them is held out",
        )
    return found


def manifest_digest(source: Data, folder: Path) -> str:
    """Return the digest of what a data source holds now."""
    return sha256_data([dict(record) for record in source.manifest(folder)])


def data_folder(cache: Path, part: Part) -> Path:
    """Return the content-addressed folder of a data part: another world, another folder."""
    options = part.as_data()
    keep_counted(part.options, options)
    return cache / f"data-{sha256_data([options, part.plugin.revision])[:16]}"
