"""The step ``latent: {use: decoder}``: open the original, start, train, measure, give the codec."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.model.halves import halves
from dit_compress.model.spec import ComponentSpec
from dit_compress.train.codec.step import chunks
from dit_compress.train.guards import Alarms
from dit_compress.train.loop import fit
from dit_compress.train.validation import Monitors, Validator
from dit_compress_plugins.latent_decoder.codec import DecoderCodec, describe
from dit_compress_plugins.latent_decoder.measures import decibels
from dit_compress_plugins.latent_decoder.objective import DecoderObjective
from dit_compress_plugins.latent_decoder.original import Original, need_same_geometry, need_same_latents
from dit_compress_plugins.latent_decoder.start import fit_linear

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from dit_compress.data.samples import Samples
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress_plugins.latent_decoder import DecoderOptions

PLUGIN = "decoder"
MEASURED = 64
"""Held-out clips that the figures are of, at most."""
CLIPS = 8
"""Clips at a time where nothing is trained."""


@dataclass
class Student:
    """The codec that the step will give, the part of it that is trained, and the names of what moves there."""

    codec: Any
    trained: nn.Module
    only: tuple[str, ...] = ()


class DecoderStep:
    """Trains a decoder onto the latents of a VAE, whose encoder and latents stay as they are."""

    def __init__(self, options: DecoderOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Give the bundle the codec of two halves; with ``student: input`` only weights change."""
        original = Original.opened(self.options.of, spec)
        if spec.latent is not None:
            need_same_geometry(original.component, spec.latent)
        after = replace(spec, latent=self.component(original))
        if spec.video is not None:
            after.latent_size()
        return after

    def run(self, context: Context) -> Result:
        """Train the decoder; the latents of its bundle are the original's."""
        device, before = context.world.device, context.spec()
        original = Original.opened(self.options.of, before, context.bundles.get("input"))
        samples, held_out = context.pixels("train"), context.pixels("test")
        teacher = self.teacher(original, context, samples.x0([0]))
        student = self.student(original, context.seed)
        objective = DecoderObjective(student.trained, teacher.to(device), self.options, student.only)
        if self.options.student == "small" and not context.world.rank:
            fit_linear(student.codec.decoder, self.pairs(objective, samples, device))
        fit(objective, samples, self.options, context, self.monitors(context, held_out))
        codec = student.codec.float().eval().requires_grad_(requires_grad=False)
        videos = (video.to(device) for video in chunks(held_out, min(len(held_out), MEASURED), CLIPS))
        metrics = decibels(codec.to(device), teacher, videos)
        latents = context.input.latents if before.latent else original.name_latents(context.folder)
        spec = replace(before, latent=replace(self.component(original), latents=latents))
        return context.give({"latent": codec.cpu()}, spec=spec, metrics=metrics)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make the codec of a saved config without weights."""
        return DecoderCodec.from_config(config)

    def component(self, original: Original) -> ComponentSpec:
        """Return the codec's component: of two halves, or the input's own, whose weights alone change."""
        if self.options.student == "input":
            return original.component
        return ComponentSpec("latent", PLUGIN, describe(original.component, self.options))

    @torch.no_grad()
    def teacher(self, original: Original, context: Context, video: Tensor) -> Any:
        """Return the codec whose decoder is learnt from: the slot's, else the original; refuse other latents."""
        codec, slot = original.load(), context.slot("teacher")
        if self.options.of is not None and context.spec().latent is not None:
            need_same_latents(codec, context.input.codec(), video, "the step's input")
        if slot is None:
            return codec
        taught: Any = slot.codec()
        need_same_latents(codec, taught, video, "the teacher")
        return taught

    def student(self, original: Original, seed: int) -> Student:
        """Return what is trained: a new small decoder behind the original's encoder, or the input's own decoder."""
        codec = original.load()
        if self.options.student == "input":
            names = {name for name, _ in codec.named_parameters()}
            return Student(codec, codec, tuple(sorted(halves(codec).decoder & names)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = small_codec(codec, describe(original.component, self.options))
        return Student(made, made.decoder)

    def pairs(
        self, objective: DecoderObjective, samples: Samples, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield latents and what is to be made of them, of the first clips."""
        for video in chunks(samples, min(len(samples), self.options.start_clips), CLIPS):
            latent, target = objective.taught(video.to(device), decodes=bool(self.options.targets.teacher))
            yield latent, video.to(device) if target is None else target

    def monitors(self, context: Context, held_out: Samples) -> Monitors | None:
        """Make the validation that chooses the weights."""
        options, world = self.options, context.world
        if options.validation is None:
            return None
        each = max(1, options.batch // (world.size * options.accumulate))
        validator = Validator(held_out, options.validation.samples, each, context.seed, world, bf16=options.bf16)
        return Monitors(options, Alarms(context, mends=options.mends), validator, None, last=True)


def small_codec(original: Any, config: Mapping[str, Any]) -> DecoderCodec:
    """Make the codec with the original's encoder, its weights included, and a new decoder."""
    made = DecoderCodec.from_config(config)
    source = original.encoder if isinstance(original, DecoderCodec) else original
    state = source.state_dict()
    kept = {name: state[name] for name in made.encoder.state_dict()}
    made.encoder.load_state_dict(kept, strict=True, assign=True)
    return made
