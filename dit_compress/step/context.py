"""What a step is given when it runs, and what it gives back."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_data
from dit_compress.core.progress import progress
from dit_compress.data.encode import encode_captions, encode_latents, pixel_cache
from dit_compress.data.prefetch import ClipStream
from dit_compress.data.samples import Samples
from dit_compress.data.shard_writer import write_together
from dit_compress.data.source import data_folder, manifest_digest
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.spec import Spec
from dit_compress.model.text import Captions
from dit_compress.step.world import Done, World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from dit_compress.data.clips import Clip
    from dit_compress.data.shards import Column
    from dit_compress.model.flow import Flow
    from dit_compress.plugin.options import Part
    from dit_compress.step.protocols import Tracker

Split = Literal["train", "test"]


class Stopped(Exception):  # noqa: N818 - not an error: the step saved itself and can be continued
    """SIGTERM or SIGUSR1 came; the checkpoint is written."""


@dataclass(frozen=True)
class Result:
    """What a step gives: a bundle or nothing, figures for the report, and named files in its folder."""

    bundle: Bundle | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Context:
    """One step's world. ``folder`` is its own (kept as the step's result); ``cache`` is shared by the run.

    bundles: the opened bundles by slot; ``input`` among them, unless the step is the first.
    names: where they came from, an earlier step's name or a path.
    parts: the recipe's shared parts by kind: data, model, text, sampler.
    licence: of what goes into the bundle, as the recipe or the model's folder states it; else the input's stays.
    trainings: how many the step has begun; each has checkpoints of its own.
    """

    name: str
    seed: int
    folder: Path
    cache: Path
    bundles: dict[str, Bundle]
    names: dict[str, str]
    parts: dict[str, Part]
    record: dict[str, Any]
    video: tuple[int, int, int] | None
    manifest_digest: str = ""
    licence: str | None = None
    trackers: Sequence[Part] = ()
    world: World = field(default_factory=World)
    notes: list[str] = field(default_factory=list)
    stopping: bool = False
    saves_itself: bool = False
    trainings: int = 0

    # -- bundles

    @property
    def input(self) -> Bundle:
        """The bundle the step works on."""
        return self.bundles["input"]

    def spec(self) -> Spec:
        """The input bundle without weights; an empty one for the first step of a recipe without a model."""
        return self.input.spec if "input" in self.bundles else Spec(video=self.video)

    def slot(self, name: str) -> Bundle | None:
        """Another bundle the step reads (``teacher``), or None."""
        return self.bundles.get(name)

    def give(
        self,
        modules: dict[str, nn.Module],
        *,
        log: Sequence[dict[str, Any]] = (),
        flow: Flow | None = None,
        spec: Spec | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> Result:
        """Write the step's bundle: the input with some components replaced, transforms logged, flow set.

        ``log`` holds new transform-log entries of the denoiser; ``spec`` replaces the components' configs.
        The first process writes; any other is done here.
        """
        if self.world.rank:
            raise Done
        base = self.bundles.get("input")
        spec = spec or self.spec()
        if log and spec.denoiser:
            spec = replace(spec, denoiser=replace(spec.denoiser, log=(*spec.denoiser.log, *log)))
        if flow is not None:
            spec = replace(spec, flow=flow)
        spec = replace(spec, video=spec.video or self.video)
        lineage = [*(base.lineage if base else []), self.record]
        bundle = write_bundle(self.folder / "bundle", spec, modules, base=base, lineage=lineage, licence=self.licence)
        return Result(bundle, metrics or {})

    # -- data

    def clips(self, split: Split) -> Sequence[Clip]:
        """The recipe's clips of one split. UserError where they are not those the run began with."""
        part = self.data_part()
        source, folder = part.build(), self.data_folder(part)
        if self.manifest_digest not in ("", manifest_digest(source, folder)):
            raise UserError(
                "the data has changed since the run began",
                mend="Run the same command again: it says what has changed, and makes anew what depends on it",
            )
        found = source.clips(folder, split)
        if not found:
            raise UserError(f"the data has no {split!r} clips", where=str(folder))
        return found

    def data_part(self) -> Part:
        """The recipe's source of data."""
        part = self.parts.get("data")
        if part is None:
            raise UserError(f"step {self.name!r} needs clips", mend="Name a 'data' source in the recipe")
        return part

    def data_folder(self, part: Part) -> Path:
        """Where a data part keeps what it wrote."""
        return data_folder(self.cache, part)

    def pixels(self, split: Split) -> Samples:
        """The clips as training samples in pixel space: streamed where the source has workers, else decoded once."""
        clips = self.clips(split)
        captions = [clip.caption for clip in clips]
        if workers := self._workers():
            return Samples(ClipStream(clips, workers), captions, {}, pixels=True)
        path = self.cache / f"pixels-{split}-{self.manifest_digest[:16]}.npy"
        with self.world.first(), self.progress(f"decoding {split} clips", len(clips)) as advance:
            return Samples(pixel_cache(path, clips, advance), captions, {}, pixels=True)

    def latents(self, split: Split, text: Captions) -> Samples:
        """The clips as latents of the input's VAE; captions as tokens, or as embeddings of a frozen encoder."""
        clips = self.clips(split)
        captions = [clip.caption for clip in clips]
        part = self.data_part()
        latents = part.build().encoded(self.data_folder(part), split, self.input.digest("latent"))
        if latents is None:
            latents = self._encode(clips, split)
        else:
            self._need_shape(tuple(latents[[0]].shape[1:]))
        if not text.frozen:
            return Samples(latents, captions, text.encoder.tokenize(captions), pixels=False)
        return Samples(latents, captions, self._embed(captions, split, text), pixels=False)

    def _need_shape(self, given: tuple[int, ...]) -> None:
        """UserError where latents encoded elsewhere are of another video size than the recipe says."""
        if given != self.latent_shape():
            raise UserError(
                f"the latents are {list(given)}, the recipe's video makes {list(self.latent_shape())}",
                mend="Give 'frames' and 'size' of the clips that were encoded",
            )

    def _encode(self, clips: Sequence[Clip], split: Split) -> Column:
        """Latents of the input's VAE, encoded unless they are there."""
        made_by = {"vae": self.input.digest("latent")}
        key = sha256_data([self.manifest_digest, made_by])
        folder, device = self.cache / f"latents-{split}-{key[:16]}", self.world.device
        codec: Any = self.input.codec()
        writing = encode_latents(folder, clips, codec.to(device), made_by, workers=self._workers(), device=device)
        with self.progress(f"encoding {split} clips", len(clips)) as advance:
            return write_together(writing, advance, self.world.rank, self.world.size).column("latent")

    def _embed(self, captions: Sequence[str], split: Split, text: Captions) -> dict[str, Column]:
        """Embeddings of a frozen encoder, encoded unless they are there."""
        made_by = {"text": self.input.digest("text"), "weights": text.encoder.digest()}
        key = sha256_data([made_by, list(captions)])
        folder, device = self.cache / f"captions-{split}-{key[:16]}", self.world.device
        writing = encode_captions(folder, captions, text.to(device), made_by, device)
        with self.progress(f"encoding {split} captions", len(captions)) as advance:
            shards = write_together(writing, advance, self.world.rank, self.world.size)
        return {name: shards.column(name) for name in ("embedding", "mask")}

    def _workers(self) -> int:
        """Threads by which the source wants its clips decoded as they are needed; 0 to decode them once."""
        return self.data_part().build().workers

    def text(self) -> Captions:
        """The input's text encoder."""
        return Captions(self.input.text())

    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the recipe's video in the input's latent space."""
        spec = replace(self.input.spec, video=self.video or self.input.spec.video)
        return (spec.codec().channels, *spec.latent_size())

    # -- sampling

    def sampler(self) -> Any:
        """The recipe's sampler; Euler where it names none."""
        from dit_compress.model.flow import euler

        part = self.parts.get("sampler")
        return euler if part is None else part.build().sample

    # -- services of the loop

    def open_trackers(self, resume_step: int) -> list[Tracker]:
        """The recipe's trackers, opened in the step's folder; the first process alone has any."""
        if self.world.rank:
            return []
        opened = [part.build() for part in self.trackers]
        for tracker in opened:
            tracker.open(self.folder, resume_step=resume_step)
        return opened

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[Any]:
        """A progress bar on a terminal, of the first process."""
        if self.world.rank:
            yield lambda *_: None
            return
        with progress(title, total, done) as advance:
            yield advance

    def say(self, text: str) -> None:
        """A line for whoever runs this, kept in the step's record, too."""
        if not self.world.rank:
            self.notes.append(text)
            sys.stderr.write(f"{self.name}: {text}\n")

    def catch_signals(self) -> None:
        """From now on SIGTERM and SIGUSR1 stop the step: a training loop saves itself first, any other just ends."""

        def ask(_number: int, _frame: Any) -> None:
            self.stopping = True
            if not self.saves_itself:
                raise Stopped

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGUSR1, ask)

    def stop_if_asked(self) -> None:
        """Leave after a checkpoint, where a signal asked for it."""
        if self.stopping:
            raise Stopped
