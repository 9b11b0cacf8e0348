"""Prune a denoiser, and prove it on its own example."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.structure.apply import apply_edits
from dit_compress.structure.copies import shared_copy
from dit_compress.structure.edits import (
    compile_edits,
)
from dit_compress.structure.masks import hard_masks, masked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Axis, Kept
from dit_compress.structure.compact import block_axis, compact_proven


def compact(denoiser: Denoiser, axes: Sequence[Axis], kept: Kept) -> dict[str, Any]:
    """Prune the denoiser in place and give the transform-log entry that repeats it.

    Proven on the denoiser's example: the masked model and the compacted one must agree, else CompactionError.
    """
    entry = compact_proven(denoiser.module, lambda: example_output(denoiser), axes, kept)
    denoiser.forget_structure()
    return entry


def masked_output(denoiser: Denoiser, axes: Sequence[Axis], kept: Kept) -> Tensor:
    """Return the example's velocity under the plan's masks."""
    parameter = next(denoiser.module.parameters())
    with masked(denoiser.module, axes, hard_masks(axes, kept, parameter)):
        return example_output(denoiser)


def example_output(denoiser: Denoiser) -> Tensor:
    """Return the velocity of the denoiser's own example, a function of the model alone."""
    training = denoiser.training
    denoiser.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = denoiser(*denoiser.typical(2, denoiser.example_size))
    denoiser.train(training)
    return output


def truncated(denoiser: Denoiser, num_blocks: int) -> Denoiser:
    """Copy the denoiser up to its first ``num_blocks`` blocks (Fig. 4 of the paper)."""
    copied = shared_copy(denoiser)
    axis = block_axis(copied.structure().main)
    apply_edits(copied.module, compile_edits(copied.module, [axis], {axis.name: tuple(range(num_blocks))}))
    copied.forget_structure()
    return copy.deepcopy(copied)
