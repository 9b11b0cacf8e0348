"""Rewrites that a device asks for beyond those that every component gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.export.rewrite.attention import slice_attention
from dit_compress.export.rewrite.convolutions import cuts_patches, linears_as_convolutions, patches_as_linears
from dit_compress.export.rewrite.nodes import shape_of
from dit_compress.export.rewrite.ranks import lower_ranks

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from dit_compress.export.types import Rewrites


def rewrite_for(program: ExportedProgram, asked: Rewrites) -> None:
    """Apply what is asked for, in place: patches, then ranks, then linears, then attention."""
    if asked.patch_linears:
        patches_as_linears(program)
    if asked.max_rank is not None:
        lower_ranks(program, asked.max_rank)
    if asked.convolutions:
        linears_as_convolutions(program)
    if asked.split_heads or asked.query_slice is not None:
        slice_attention(program, heads=asked.split_heads, queries=asked.query_slice)


def would_change(program: ExportedProgram, asked: Rewrites) -> bool:
    """Tell whether anything is asked for that concerns this program."""
    limit = asked.max_rank
    tall = limit is not None and any(len(shape_of(node) or ()) > limit for node in program.graph_module.graph.nodes)
    patches = asked.patch_linears and any(map(cuts_patches, program.graph_module.graph.nodes))
    return tall or patches or asked.convolutions or asked.split_heads or asked.query_slice is not None
