"""Clean latents made by the teacher: (noise, x0) pairs, so that the student learns what guidance did."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from dit_compress.core.files import whole_file
from dit_compress.core.progress import progress
from dit_compress.core.randomness import Streams, generator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_adversarial import AdversarialOptions

    Tokens = Callable[[Sequence[int]], Mapping[str, Tensor]]

BATCH = 32


@dataclass
class TeacherPairs:
    """Pairs that the teacher made: noise and clean latents ``[N,C,T,H,W]``, and their captions' tokens.

    tokens: gives those of some places, or the embeddings that are kept on disk.
    held_out: pairs of held-out captions, one a sample, which a validation measures.
    images: pairs of single latent frames, of which a step on images draws.
    """

    noise: Tensor
    x0: Tensor
    tokens: Tokens
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
        return self.x0[index].to(where), self.noise[index].to(where), _cond(text, self.tokens(index.tolist()), where)


def teacher_pairs(context: Context, options: AdversarialOptions, teacher: Denoiser, text: Captions) -> TeacherPairs:
    """Sample the teacher once; the files in the step's folder survive a kill. Images are samples of one frame."""
    samples = context.latents("train", text)
    count, shape = options.teacher_samples, context.latent_shape()
    order = generator(context.seed, "teacher captions").integers(len(samples), size=count).tolist()
    image, make = (shape[0], 1, *shape[2:]), _Sampling(context, options, teacher, text)

    def tokens(places: Sequence[int]) -> dict[str, Tensor]:
        return samples.tokens([order[place] for place in places])

    images = make.pairs("teacher-images", tokens, range(count), image) if options.images and image != shape else None
    held_out = None
    if options.validation is not None:
        others = context.latents("test", text)
        places = range(count, count + min(options.validation.samples, len(others)))
        held_out = make.pairs("teacher-held-out", others.tokens, places, shape)
    return replace(make.pairs("teacher", tokens, range(count), shape), held_out=held_out, images=images)


@dataclass(frozen=True)
class _Sampling:
    """How the teacher is sampled."""

    context: Context
    options: AdversarialOptions
    teacher: Denoiser
    text: Captions

    def pairs(self, name: str, tokens: Tokens, noise: range, shape: tuple[int, ...]) -> TeacherPairs:
        """Return the pairs of a file, written by the first process where it is not there. noise: the index of each."""
        path = self.context.folder / f"{name}.safetensors"
        with self.context.world.first():
            if not path.is_file():
                made = self._made(tokens, noise, shape)
                with whole_file(path) as partial:
                    save_file(made, partial)
        made = load_file(path)
        return TeacherPairs(made["noise"], made["x0"], tokens)

    def _made(self, tokens: Tokens, noise: range, shape: tuple[int, ...]) -> dict[str, Tensor]:
        context, options = self.context, self.options
        flow = (context.slot("teacher") or context.input).flow
        sigmas = flow.sigmas(options.teacher_steps)
        guidance = flow.guidance if options.teacher_guidance is None else options.teacher_guidance
        sampler, device = context.sampler(flow), context.world.device
        noises, latents = [], []
        self.teacher.eval().to(device)
        self.text.to(device)
        with progress("teacher's samples", len(noise), silent=context.world.rank > 0) as advance:
            for first in range(0, len(noise), BATCH):
                places = range(len(noise))[first : first + BATCH]
                noises.append(Streams(context.seed, 0, noise[first : first + BATCH]).normal("teacher", shape))
                cond = _cond(self.text, tokens(places), device)
                with torch.no_grad():
                    latents.append(sampler(self.teacher, noises[-1].to(device), cond, sigmas, guidance).cpu())
                for _ in places:
                    advance()
        return {"noise": torch.cat(noises), "x0": torch.cat(latents)}


@torch.no_grad()
def _cond(text: Captions, tokens: Mapping[str, Tensor], device: torch.device) -> Cond:
    """Return conditions on a device; embeddings that are kept ask no encoder."""
    return text({name: value.to(device) for name, value in tokens.items()}).to(device)
