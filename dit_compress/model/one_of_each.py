"""A denoiser with one block of each shape: a target objects to it, or does not, as to the whole.

Blocks of one signature (classes, shapes, plain attributes) are traced to the same operators and cost the same. The
others become tombstones, which hand the streams on: every block that stays keeps its place, its path and its inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.edits import keep_blocks
from dit_compress.structure.observe.trace import FAILURES
from dit_compress.structure.signature import signature

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser


def shorten(denoiser: Denoiser) -> dict[str, int]:
    """Leave one block of each signature in every stack, in place; weights are not read.

    A module whose structure is not understood stays whole.

    Returns:
        How many blocks each one that is left stands for, by its path.
    """
    try:
        stacks = denoiser.structure().stacks
    except (UserError, *FAILURES):
        return {}
    edits, counts = [], dict[str, int]()
    for stack in stacks:
        if not stack.removable:
            continue
        alike: dict[Any, list[int]] = {}
        for index, path in enumerate(stack.blocks):
            alike.setdefault(signature(denoiser.module.get_submodule(path), {}), []).append(index)
        counts |= {stack.block(indices[0]): len(indices) for indices in alike.values()}
        kept = tuple(sorted(indices[0] for indices in alike.values()))
        edits.append(keep_blocks(stack, kept, tombstones=True))
    apply_edits(denoiser.module, edits)
    denoiser.forget_structure()
    return counts
