"""Clean latents made by the guided teacher: (noise, x0) pairs, so that the student learns what guidance did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from dit_compress.train.streams import Streams, generator

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.context import Context
    from dit_compress.denoiser import Cond, Denoiser
    from dit_compress.encode import Captions
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_adversarial import AdversarialOptions

BATCH = 32


@dataclass
class TeacherPairs:
    """What the teacher made: noise and clean latents ``[N,C,T,H,W]``, and their captions' tokens."""

    noise: Tensor
    x0: Tensor
    tokens: dict[str, Tensor]

    def draw(self, batch: Batch, text: Captions) -> tuple[Tensor, Tensor, Cond]:
        """A batch of pairs, as a function of the batch's streams."""
        index = batch.streams.integers("pair", len(self.x0))
        where, index = index.device, index.cpu()
        with torch.no_grad():
            cond = text({name: value[index].to(where) for name, value in self.tokens.items()})
        return self.x0[index].to(where), self.noise[index].to(where), cond


def teacher_pairs(context: Context, options: AdversarialOptions, teacher: Denoiser, text: Captions) -> TeacherPairs:
    """Sample the teacher once; the file in the step's folder survives a kill."""
    samples = context.latents("train", text)
    count = options.teacher_samples
    order = generator(context.seed, "teacher captions").integers(len(samples), size=count).tolist()
    tokens = samples.tokens(order)
    path = context.folder / "teacher.safetensors"
    with context.world.first():
        if not path.is_file():
            made = _sample(context, options, teacher, text, order, samples.captions(order))
            partial = path.with_suffix(".partial")
            save_file(made, partial)
            partial.replace(path)
    made = load_file(path)
    return TeacherPairs(made["noise"], made["x0"], tokens)


def _sample(
    context: Context,
    options: AdversarialOptions,
    teacher: Denoiser,
    text: Captions,
    order: list[int],
    captions: list[str],
) -> dict[str, Tensor]:
    bundle = context.slot("teacher")
    flow = (bundle or context.input).flow
    sigmas, shape = flow.sigmas(options.teacher_steps), context.latent_shape()
    sampler, device = context.sampler(), context.world.device
    noises, latents = [], []
    teacher.eval().to(device)
    text.to(device)
    with context.progress("teacher's samples", len(order)) as advance:
        for first in range(0, len(order), BATCH):
            index = list(range(first, min(first + BATCH, len(order))))
            noise = Streams(context.seed, 0, index).normal("teacher", shape)
            with torch.no_grad():
                cond = text.cond(captions[first : first + BATCH]).to(device)
                latents.append(sampler(teacher, noise.to(device), cond, sigmas, flow.guidance).cpu())
            noises.append(noise)
            for _ in index:
                advance()
    return {"noise": torch.cat(noises), "x0": torch.cat(latents)}
