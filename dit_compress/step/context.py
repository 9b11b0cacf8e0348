"""A step's inputs when it runs, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.data.buckets import Again, buckets_of
from dit_compress.data.cache import ClipCache
from dit_compress.data.source import clips_of, data_folder, manifest_digest
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.conditions import first_conditions
from dit_compress.model.spec import Spec
from dit_compress.model.text import Captions
from dit_compress.plugin.options import VideoOptions
from dit_compress.step.workplace import Stopping, Workplace
from dit_compress.step.world import Done

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from dit_compress.data.clips import Clip, Split
    from dit_compress.data.samples import Samples
    from dit_compress.model.flow import Flow
    from dit_compress.plugin.options import Part


@dataclass(frozen=True)
class Result:
    """The result of a step: a bundle or nothing, figures for the report, and named files in its folder."""

    bundle: Bundle | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Context(Workplace):
    """The inputs of a step, and ways to give its result.

    folder: its own, kept as the step's result. cache: shared by the run.
    bundles: the opened bundles by slot; ``input`` among them, unless the step is the first.
    names: where they came from, an earlier step's name or a path.
    parts: the recipe's shared parts by kind: data, model, text, sampler.
    record: the step's entry in the lineage of what it gives.
    licence: of what goes into the bundle, as the recipe states it; else the input's stays.
    trainings: how many the step has begun; each has checkpoints of its own.
    """

    cache: Path
    bundles: dict[str, Bundle] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    video: tuple[int, int, int] | None = None
    manifest_digest: str = ""
    licence: str | None = None
    trackers: Sequence[Part] = ()
    stopping: Stopping = field(default_factory=Stopping)
    trainings: int = 0

    # -- bundles

    @property
    def input(self) -> Bundle:
        """The bundle the step works on."""
        return self.bundles["input"]

    def spec(self) -> Spec:
        """Describe the input bundle without weights; an empty one for the first step of a recipe without a model."""
        return self.input.spec if "input" in self.bundles else Spec(video=self.video)

    def slot(self, name: str) -> Bundle | None:
        """Return another bundle the step reads (``teacher``), or None."""
        return self.bundles.get(name)

    def give(
        self,
        modules: dict[str, nn.Module],
        *,
        log: Sequence[dict[str, Any]] = (),
        flow: Flow | None = None,
        spec: Spec | None = None,
        metrics: dict[str, Any] | None = None,
        licence: str | None = None,
    ) -> Result:
        """Write the step's bundle: the input with some components replaced, transforms logged, flow set.

        ``log`` holds new transform-log entries of the denoiser; ``spec`` replaces the components' configs;
        ``licence`` counts where the recipe states none. The first process writes; any other is done here.
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
        licence = licence if self.licence is None else self.licence
        bundle = write_bundle(self.folder / "bundle", spec, modules, base=base, lineage=lineage, licence=licence)
        return Result(bundle, metrics or {})

    # -- data

    def clips(self, split: Split) -> Sequence[Clip]:
        """Return the recipe's clips of one split; raise a UserError where they are not those the run began with."""
        part, folder = self._data_part(), self._data_folder()
        if self.manifest_digest not in ("", manifest_digest(part.build(), folder)):
            raise UserError(
                "the data has changed since the run began",
                mend="Run the same command again: it says what has changed, and makes anew what depends on it",
            )
        return clips_of(part, folder, split)

    def pixels(self, split: Split) -> Samples:
        """Return the clips as samples in pixel space: streamed where the source has workers, else decoded once."""
        cached = self._cached(split)
        if cached.workers:
            return cached.pixels()
        with self.world.first():
            return cached.pixels()

    def latents(self, split: Split, text: Captions, captions: Sequence[str] = ()) -> Samples:
        """Return the clips as latents of the input's VAE; captions as tokens, or as embeddings of a frozen encoder.

        captions: in place of the clips' own, each beside the next clip, again from the first after the last.
        """
        cached, source = self._cached(split), self._data_part().build()
        latents = source.encoded(self._data_folder(), split, self.input.latents)
        if latents is None:
            latents = cached.latents(self.input)
        else:
            for shape, index in buckets_of(cached.clips).items():
                self._need_shape(tuple(latents[index[:1]].shape[1:]), shape)
        shown, count = cached, len(cached.clips)
        if captions:
            clips = [replace(cached.clips[i % count], caption=each) for i, each in enumerate(captions)]
            shown = replace(cached, clips=clips)
            latents = Again(latents, count)
        samples = shown.samples(latents, self.input, text)
        if not self.first_frame:
            return samples
        for condition in first_conditions(self.input.spec.outline()):
            given = source.firsts(self._data_folder(), split, condition)
            firsts = cached.firsts(self.input, condition, text) if given is None else given
            samples = samples.beside(condition, Again(firsts, count) if captions else firsts)
        return samples

    @property
    def first_frame(self) -> bool:
        """Tell whether the recipe's data gives the model the first frame of each clip."""
        options = self._data_part().options
        return isinstance(options, VideoOptions) and options.first_frame

    def text(self) -> Captions:
        """Return the input's text encoder."""
        return Captions(self.input.text())

    def latent_shape(self, video: tuple[int, int, int] | None = None) -> tuple[int, int, int, int]:
        """Return (C, T, H, W) of a video, by default the recipe's, in the input's latent space."""
        spec = replace(self.input.spec, video=video or self.video or self.input.spec.video)
        return (spec.codec().channels, *spec.latent_size())

    def sampler(self, flow: Flow | None = None) -> Any:
        """Return the recipe's sampler; where it names none that of the flow settings, the input's if not given."""
        part = self.parts.get("sampler")
        return (flow or self.input.flow).sample() if part is None else part.build().sample

    def _cached(self, split: Split) -> ClipCache:
        clips, workers = self.clips(split), self._data_part().build().workers
        world = self.world
        return ClipCache(self.cache, split, clips, self.manifest_digest, workers, world.rank, world.size, world.device)

    def _data_part(self) -> Part:
        part = self.parts.get("data")
        if part is None:
            raise UserError(f"step {self.name!r} needs clips", mend="Name a 'data' source in the recipe")
        return part

    def _data_folder(self) -> Path:
        return data_folder(self.cache, self._data_part())

    def _need_shape(self, given: tuple[int, ...], video: tuple[int, int, int]) -> None:
        """Raise a UserError where latents encoded elsewhere are of another video size than the recipe says."""
        if given != (stated := self.latent_shape(video)):
            raise UserError(
                f"the latents are {list(given)}, the recipe's video makes {list(stated)}",
                mend="Give 'frames' and 'size' of the clips that were encoded, and in the latent step as many channels",
            )
