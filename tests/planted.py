"""A tiny DiT in which some units are useless on purpose, and what a search needs to find them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from toy import CAPTIONS, SIZE, context_in, tiny_bundle, words

from dit_compress.core.randomness import Streams
from dit_compress.data.samples import Samples
from dit_compress.model.text import Captions
from dit_compress.plugin.options import Options, Part, Plugin
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem, Selection
from dit_compress.step.context import Context
from dit_compress.structure.compact import block_axis
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.losses import flow_loss
from dit_compress.train.objective import Phase, Role
from dit_compress_plugins.granularity_ffn.axes import ffn_axis
from dit_compress_plugins.granularity_head.axes import head_axis

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.train.objective import Batch


class Copy:
    """A part of kind ``distill``: the masked model must say what the whole one says."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def objective(self, context: Context, student: Denoiser, teacher: Denoiser, text: Captions) -> Copy:
        self.student, self.teacher, self.text = student, teacher, text
        self.roles = {"student": Role(student), "teacher": Role(teacher), "text": Role(text)}
        self.phases = (Phase("copy", ("student",)),)
        return self

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        cond, sigma = self.text(batch.tokens), batch.streams.uniform("sigma")
        with torch.no_grad():
            target = self.teacher(batch.x0, sigma, cond)
        return {"loss": flow_loss(self.student(batch.x0, sigma, cond), target)}


class Halfway(Copy):
    """Half of what block 1 does is wanted: the whole model overshoots by as much as it falls short without that block.

    So the loss is the same with it and without, and steep between.
    """

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        cond, sigma = self.text(batch.tokens), batch.streams.uniform("sigma")
        axis = block_axis(self.teacher.structure().main)
        without = {axis.name: tuple(index for index in range(axis.units) if index != USELESS_BLOCK)}
        with torch.no_grad():
            target = self.teacher(batch.x0, sigma, cond)
            with masked(self.teacher.module, [axis], hard_masks([axis], without, batch.x0)):
                target = (target + self.teacher(batch.x0, sigma, cond)) / 2
        return {"loss": flow_loss(self.student(batch.x0, sigma, cond), target)}


class Latents(Context):
    """A context whose latents are noise."""

    def latents(self, split: str, text: Any) -> Samples:
        x0 = Streams(0, 0, range(8)).normal("latents", (8, *SIZE))
        captions = [CAPTIONS[index % 4] for index in range(8)]
        return Samples(x0.numpy(), captions, words().encoder.tokenize(captions), pixels=False)


USELESS_BLOCK = 1
USELESS_HEADS = {0: 2, 2: 1}
USELESS_CHANNELS = {0: range(16, 32), 2: range(40, 56)}


def planted() -> Denoiser:
    """Block 1 does nothing; in each other block one head and sixteen channels reach no output."""
    denoiser = tiny_denoiser("video_dit")
    with torch.no_grad():
        for index, block in enumerate(denoiser.module.transformer_blocks):
            outputs = [block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]]
            if index == USELESS_BLOCK:
                for output in outputs:
                    output.weight.zero_()
                    output.bias.zero_()
                continue
            head = USELESS_HEADS[index]
            for output in outputs[:2]:
                output.weight[:, 12 * head : 12 * (head + 1)] = 0
            outputs[2].weight[:, list(USELESS_CHANNELS[index])] = 0
    return denoiser


def problem_of(denoiser: Denoiser) -> SearchProblem:
    structure = denoiser.structure()
    heads, channels = map(head_axis, structure.attentions), map(ffn_axis, structure.feed_forwards)
    axes = (block_axis(structure.main), *heads, *channels)
    counts = {"block": 2, "head": 3, "ffn": 48}
    return SearchProblem(denoiser, axes, {axis.name: counts[axis.level] for axis in axes}, {"ffn": 8})


def overshooting() -> Denoiser:
    """Block 1 does much, of which :class:`Halfway` wants half; heads and channels are those of :func:`planted`."""
    denoiser = planted()
    block = denoiser.module.transformer_blocks[USELESS_BLOCK]
    with torch.no_grad():
        block.ff.net[2].bias.normal_(generator=torch.Generator().manual_seed(0))
    return denoiser


def search(folder: Path, problem: SearchProblem, use: str, objective: str = "Copy", **options: Any) -> Selection:
    """One search, with an objective from here, on latents that are noise."""
    return searching(use, objective, **options).build().search(problem, latents_in(folder))


def searching(use: str, objective: str = "Copy", **options: Any) -> Part:
    """The part for it."""
    plain = make_part("search", {"use": use, "batch": 4, "objective": "affine", **options}, installed())
    return Part("search", plain.plugin, plain.options.model_copy(update={"objective": made(objective)}))


def made(objective: str) -> Part:
    """An objective from here as a part."""
    return Part("distill", Plugin(objective.lower(), Options, f"{__name__}:{objective}"), Options())


def latents_in(folder: Path) -> Latents:
    """A context over a tiny bundle; training curves go into the folder."""
    context = Latents(**vars(context_in(folder, input=tiny_bundle(folder / "bundle"))))
    context.trackers = (make_part("tracker", "jsonl", installed()),)
    return context
