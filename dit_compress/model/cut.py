"""Prune a denoiser, and prove it on its own example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.structure.apply import apply_edits
from dit_compress.structure.compact import block_axis, compact_proven
from dit_compress.structure.copies import deep_copy, shared_copy
from dit_compress.structure.edits import compile_edits, settle_norms
from dit_compress.structure.masks import hard_masks, masked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Axis, Kept


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


def pruned_copy(denoiser: Denoiser, axes: Sequence[Axis], kept: Kept) -> Denoiser:
    """Copy the denoiser without what a plan removes, to be tried: unproven, with weights of its own."""
    copied = shared_copy(denoiser)
    settle_norms(copied.module, axes)
    apply_edits(copied.module, compile_edits(copied.module, axes, kept))
    copied.forget_structure()
    return deep_copy(copied)


def truncated(denoiser: Denoiser, num_blocks: int) -> Denoiser:
    """Copy the denoiser up to its first ``num_blocks`` blocks (Figure 2 of the paper)."""
    axis = block_axis(denoiser.structure().main)
    return pruned_copy(denoiser, [axis], {axis.name: tuple(range(num_blocks))})
