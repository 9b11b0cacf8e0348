"""A denoiser with one block of each shape: a target objects to it, or does not, as to the whole.

Blocks of one signature (classes, shapes, plain attributes) are traced to the same operators. The others become
tombstones, which hand the streams on: every block that stays keeps its place, its path and its inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.model.denoiser import find_stacks_of
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.edits import keep_blocks
from dit_compress.structure.observe.trace import FAILURES
from dit_compress.structure.signature import signature

if TYPE_CHECKING:
    from torch import nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.edits import KeepBlocks
    from dit_compress.structure.facts import Stack


def shorten(denoiser: Denoiser) -> None:
    """Leave one block of each signature in every stack, in place; weights are not read.

    A module whose stacks are not understood stays whole.
    """
    try:
        stacks = find_stacks_of(denoiser)
    except (UserError, *FAILURES):
        return
    edits = [_keep_first(denoiser.module, stack) for stack in stacks if stack.removable]
    apply_edits(denoiser.module, edits)
    denoiser.forget_structure()


def _keep_first(module: nn.Module, stack: Stack) -> KeepBlocks:
    """The first block of each signature, tombstones for the rest."""
    first: dict[Any, int] = {}
    for index, path in enumerate(stack.blocks):
        first.setdefault(signature(module.get_submodule(path), {}), index)
    return keep_blocks(stack, tuple(sorted(first.values())), tombstones=True)
