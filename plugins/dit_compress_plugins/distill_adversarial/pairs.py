"""Clean latents made by the teacher: (noise, x0) pairs, so that the student learns what guidance did."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from dit_compress.core.files import whole_file
from dit_compress.core.progress import progress
from dit_compress.core.randomness import Streams, generator
from dit_compress.model.conditions import beyond_text

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_adversarial import AdversarialOptions

BATCH = 32


@dataclass
class TeacherPairs:
    """Pairs that the teacher made: noise and clean latents ``[N,C,T,H,W]``, and their captions' tokens.

    held_out: pairs of held-out captions, one a sample, which a validation measures.
    images: pairs of single latent frames, of which a step on images draws.
    """

    noise: Tensor
    x0: Tensor
    tokens: dict[str, Tensor]
    held_out: TeacherPairs | None = None
    images: TeacherPairs | None = None

    def draw(self, batch: Batch, text: Captions) -> tuple[Tensor, Tensor, Cond]:
        """Draw a batch of pairs, as a function of the batch's streams; those of its samples in a validation."""
        if batch.held_out and self.held_out is not None:
            return self.held_out.take(torch.tensor(list(batch.sample), device=batch.x0.device), text)
        pairs = self.images if self.images is not None and batch.x0.shape[2] == 1 else self
        return pairs.take(batch.streams.integers("pair", len(pairs.x0)), text)

    def take(self, index: Tensor, text: Captions) -> tuple[Tensor, Tensor, Cond]:
        """Return the pairs of some places, on the device of ``index``."""
        where, index = index.device, index.cpu()
        with torch.no_grad():
            cond = text({name: value[index].to(where) for name, value in self.tokens.items()})
        return self.x0[index].to(where), self.noise[index].to(where), cond


def teacher_pairs(context: Context, options: AdversarialOptions, teacher: Denoiser, text: Captions) -> TeacherPairs:
    """Sample the teacher once; the files in the step's folder survive a kill. Images are samples of one frame."""
    samples = context.latents("train", text)
    count, shape = options.teacher_samples, context.latent_shape()
    order = generator(context.seed, "teacher captions").integers(len(samples), size=count).tolist()
    tokens, captions = samples.tokens(order), samples.captions(order)
    image = (shape[0], 1, *shape[2:])
    images = None
    if options.images and image != shape:
        made = _made(context, options, teacher, text, captions, tokens, image, "teacher-images")
        images = TeacherPairs(made["noise"], made["x0"], tokens)
    if options.validation is not None:
        held_out = context.latents("test", text)
        places = range(min(options.validation.samples, len(held_out)))
        more = held_out.tokens(places)
        tokens = {name: torch.cat([value, more[name]]) for name, value in tokens.items()}
        captions = [*captions, *held_out.captions(places)]
    made = _made(context, options, teacher, text, captions, tokens, shape, "teacher")
    held, rest = (
        TeacherPairs(made["noise"][part], made["x0"][part], {name: value[part] for name, value in tokens.items()})
        for part in (slice(count, None), slice(count))
    )
    return replace(rest, held_out=held if options.validation is not None else None, images=images)


def _made(
    context: Context,
    options: AdversarialOptions,
    teacher: Denoiser,
    text: Captions,
    captions: list[str],
    tokens: dict[str, Tensor],
    shape: tuple[int, ...],
    name: str,
) -> dict[str, Tensor]:
    """Return noise and x0 of a file, written by the first process where it is not there."""
    path = context.folder / f"{name}.safetensors"
    with context.world.first():
        if not path.is_file():
            made = _sample(context, options, teacher, text, captions, beyond_text(tokens), shape)
            with whole_file(path) as partial:
                save_file(made, partial)
    return load_file(path)


def _sample(
    context: Context,
    options: AdversarialOptions,
    teacher: Denoiser,
    text: Captions,
    captions: list[str],
    beside: dict[str, Tensor],
    shape: tuple[int, ...],
) -> dict[str, Tensor]:
    bundle = context.slot("teacher")
    flow = (bundle or context.input).flow
    sigmas = flow.sigmas(options.teacher_steps)
    guidance = flow.guidance if options.teacher_guidance is None else options.teacher_guidance
    sampler, device = context.sampler(flow), context.world.device
    noises, latents = [], []
    teacher.eval().to(device)
    text.to(device)
    with progress("teacher's samples", len(captions), silent=context.world.rank > 0) as advance:
        for first in range(0, len(captions), BATCH):
            index = list(range(first, min(first + BATCH, len(captions))))
            noise = Streams(context.seed, 0, index).normal("teacher", shape)
            with torch.no_grad():
                some = {name: value[first : first + BATCH] for name, value in beside.items()}
                cond = text.cond(captions[first : first + BATCH]).beside(some).to(device)
                latents.append(sampler(teacher, noise.to(device), cond, sigmas, guidance).cpu())
            noises.append(noise)
            for _ in index:
                advance()
    return {"noise": torch.cat(noises), "x0": torch.cat(latents)}
