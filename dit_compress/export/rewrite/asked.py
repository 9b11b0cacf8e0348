"""Rewrites that a device asks for beyond those that every component gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.export.rewrite.attention import slice_attention
from dit_compress.export.rewrite.convolutions import (
    cuts_patches,
    flatten_convolutions,
    goes_flat,
    linears_as_convolutions,
    patches_as_linears,
)
from dit_compress.export.rewrite.nodes import shape_of
from dit_compress.export.rewrite.ranks import lower_ranks

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from dit_compress.export.types import Rewrites


def rewrite_for(program: ExportedProgram, asked: Rewrites) -> None:
    """Apply what is asked for, in place: patches and frames, then ranks, then linears, then attention."""
    if asked.flat_convolutions:
        patches_as_linears(program)
        flatten_convolutions(program)
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
    nodes = program.graph_module.graph.nodes
    deep = asked.flat_convolutions and any(cuts_patches(node) or goes_flat(node) for node in nodes)
    return tall or deep or asked.convolutions or asked.split_heads or asked.query_slice is not None
