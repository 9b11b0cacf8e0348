"""Attention in slices: one head after another, or so many queries at a time. The scores then fit a small memory.

Softmax goes over the keys of one query and one head, so slices along heads and queries are independent: each
number is the same sum. Kernels may block it otherwise: ``|difference| <= 1e-6 · max|v|`` in float32.

Shapes: B batch, N heads, S queries, L keys, K head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.export.rewrite.graph import ATTENTION, is_causal, mask_of
from dit_compress.export.rewrite.nodes import become, call, loosen, shape_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

aten = torch.ops.aten
RANK = 4
HEADS, QUERIES = -3, -2
"""Axes, counted from the end: a mask may lack the first ones."""


def slice_attention(program: ExportedProgram, *, heads: bool = False, queries: int | None = None) -> int:
    """Rewrite attentions over ``[B,N,S,K]``, in place; how many there were with something to slice.

    heads: one head at a time. queries: at most so many at a time; a causal attention is not sliced along queries.
    """
    graph, found = program.graph_module.graph, 0
    for node in list(graph.nodes):
        if node.target is ATTENTION and len(shape_of(node) or ()) == RANK:
            found += _slice(node, heads=heads, queries=queries)
    loosen(graph)
    graph.lint()
    program.graph_module.recompile()
    return found


def _slice(node: Node, *, heads: bool, queries: int | None) -> bool:
    q, k, v = node.args[:3]
    _, num_heads, num_queries, _ = shape_of(q) or ()
    length = num_queries if is_causal(node) or queries is None else queries
    own = [(n, n + 1) for n in range(num_heads)] if heads else [(0, num_heads)]
    rows = [(start, min(start + length, num_queries)) for start in range(0, num_queries, length)]
    if len(own) * len(rows) == 1:
        return False
    shared = num_heads // (shape_of(k) or ())[1]  # query heads to a head of keys and values
    parts = []
    for first, last in own:
        theirs = (first // shared, (last - 1) // shared + 1)
        keys, values = cut(node, k, HEADS, theirs), cut(node, v, HEADS, theirs)
        pieces = []
        for ends in rows:
            some = cut(node, cut(node, q, HEADS, (first, last)), QUERIES, ends)
            mask = cut(node, cut(node, mask_of(node), HEADS, (first, last)), QUERIES, ends)
            named = {name: value for name, value in node.kwargs.items() if name != "attn_mask"}
            pieces.append(call(node, ATTENTION, some, keys, values, mask, *node.args[4:], **named))
        parts.append(pieces)
    if len(parts) == 1:
        become(node, aten.cat.default, parts[0], RANK + QUERIES)
        return True
    along = [
        pieces[0] if len(pieces) == 1 else call(node, aten.cat.default, pieces, RANK + QUERIES) for pieces in parts
    ]
    become(node, aten.cat.default, along, RANK + HEADS)
    return True


def cut(before: Node, value: Any, axis: int, ends: tuple[int, int]) -> Any:
    """Slice ``value[start:end]`` along an axis that it has; None, and axes that broadcast, stay as they are."""
    shape = shape_of(value)
    if shape is None or len(shape) < -axis or shape[axis] == 1 or ends == (0, shape[axis]):
        return value
    return call(before, aten.slice.Tensor, value, len(shape) + axis, *ends)
