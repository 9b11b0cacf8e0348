"""The clips of one split as training reads them: encoded once, kept in the run's cache under a digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_compress.core.files import sha256_data
from dit_compress.core.progress import progress
from dit_compress.data.buckets import buckets_of, joined
from dit_compress.data.encode import CPU, encode_captions, encode_latents, pixel_cache
from dit_compress.data.prefetch import ClipStream
from dit_compress.data.samples import Samples
from dit_compress.data.shard_writer import write_together
from dit_compress.model.conditions import IMAGE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

    from dit_compress.data.buckets import Rows
    from dit_compress.data.clips import Clip
    from dit_compress.data.shard_writer import Writing
    from dit_compress.data.shards import Column, Shards
    from dit_compress.model.bundle import Bundle
    from dit_compress.model.text import Captions


@dataclass(frozen=True)
class ClipCache:
    """Clips of one split, and where they are kept.

    folder: the run's cache. manifest: digest of all the data. workers: threads by which clips are decoded as they are
    needed; 0 to decode them once. rank, size: which of how many processes encodes here, on ``device``.
    """

    folder: Path
    split: str
    clips: Sequence[Clip]
    manifest: str
    workers: int = 0
    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def captions(self) -> list[str]:
        """The clips' captions."""
        return [clip.caption for clip in self.clips]

    def pixels(self) -> Samples:
        """Give the clips in pixel space: streamed where there are workers, else decoded once."""
        rows = ClipStream(self.clips, self.workers) if self.workers else joined(self.clips, self._decoded)
        return Samples(rows, self.captions, {}, pixels=True, buckets=buckets_of(self.clips))

    def _decoded(self, clips: Sequence[Clip]) -> Rows:
        """Give the pixels of clips of one size, decoded once."""
        digest = sha256_data([clip.identity() for clip in clips])[:16]
        path = self.folder / f"pixels-{self.split}-{digest}.npy"
        with self._progress(f"decoding {self.split} clips", len(clips)) as advance:
            return pixel_cache(path, clips, advance)

    def latents(self, bundle: Bundle) -> Rows:
        """Give latents of a bundle's VAE, encoded unless they are there, by bucket."""
        several = len(buckets_of(self.clips)) > 1
        return joined(self.clips, lambda clips: self._encoded(clips, bundle, *several * clips[0].shape))

    def _encoded(self, clips: Sequence[Clip], bundle: Bundle, *bucket: int) -> Column:
        """Give the latents of clips of one size; ``bucket`` says which, where there are others."""
        made_by = {"vae": bundle.latents}
        folder = self.folder / f"latents-{self.split}-{sha256_data([self.manifest, made_by, *bucket])[:16]}"
        codec: Any = bundle.codec()
        writing = encode_latents(
            folder, clips, codec.to(self.device), made_by, workers=self.workers, device=self.device
        )
        return self._written(writing, f"encoding {self.split} clips").column("latent")

    def firsts(self, bundle: Bundle, condition: str, text: Captions) -> Rows:
        """Give what a condition takes of first frames, encoded unless it is there, by bucket; memory is given back."""
        rows = joined(self.clips, lambda clips: self._first(clips, bundle, condition, text))
        text.encoder.release()
        return rows

    def _first(self, clips: Sequence[Clip], bundle: Bundle, condition: str, text: Captions) -> Column:
        if condition == IMAGE:
            made_by = {"text": bundle.digest("text"), "weights": text.encoder.digest(), "names": [condition]}
        else:
            made_by = {"vae": bundle.latents, "names": [condition]}
        folder = self.folder / f"{condition}-{self.split}-{sha256_data([self.manifest, made_by, clips[0].shape])[:16]}"
        codec: Any = bundle.codec()
        writing = encode_latents(
            folder, clips, codec.to(self.device), made_by, self.workers, self.device, [condition], text.encoder
        )
        return self._written(writing, f"encoding {self.split} first frames").column(condition)

    def samples(self, latents: Rows, bundle: Bundle, text: Captions) -> Samples:
        """Join latents with captions: tokens, or embeddings where the bundle's encoder is frozen."""
        buckets = buckets_of(self.clips)
        if not text.frozen:
            return Samples(latents, self.captions, text.encoder.tokenize(self.captions), pixels=False, buckets=buckets)
        weights = text.encoder.digest()
        made_by = {"text": bundle.digest("text"), "weights": weights}
        captions = [*self.captions, *([""] if weights else [])]  # whose weights lie elsewhere is not read again for it
        folder = self.folder / f"captions-{self.split}-{sha256_data([made_by, captions])[:16]}"
        writing = encode_captions(folder, captions, text.to(self.device), made_by, self.device)
        shards = self._written(writing, f"encoding {self.split} captions")
        if weights:
            text.remember({name: shards.row(name, len(captions) - 1).float() for name in shards.names()})
            text.encoder.release()
        embedded = {name: shards.column(name) for name in shards.names()}
        return Samples(latents, self.captions, embedded, pixels=False, buckets=buckets)

    def _written(self, writing: Writing, title: str) -> Shards:
        with self._progress(title, len(writing.samples)) as advance:
            return write_together(writing, advance, self.rank, self.size)

    def _progress(self, title: str, count: int) -> AbstractContextManager[Any]:
        return progress(title, count, silent=self.rank > 0)
