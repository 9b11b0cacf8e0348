"""New nodes of a traced program, with the shapes that converters read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.node import map_arg

if TYPE_CHECKING:
    from torch.fx import Graph, Node

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default)  # noqa: SLF001 - its name


def call(before: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """Insert a node just before another, said to come from the same line of the model; its value is a fake tensor."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    given, named = map_arg((args, kwargs), lambda each: each.meta["val"])
    node.meta = {**before.meta, "val": target(*given, **named)}
    return node


def become(node: Node, target: Any, *args: Any, **kwargs: Any) -> None:
    """Let a node compute the same another way. It keeps its name: a program knows its outputs by their names."""
    node.target, node.args, node.kwargs = target, args, kwargs


def loosen(graph: Graph) -> None:
    """Turn every ``view`` into ``reshape``: it also takes values that lie in memory as they did not when traced."""
    for node in graph.nodes:
        if node.target in VIEWS:
            node.target = aten.reshape.default


def shape_of(node: Any) -> tuple[int, ...] | None:
    """Return the shape of a node's value where that is one tensor of a fixed shape."""
    value = getattr(node, "meta", {}).get("val")
    if not isinstance(value, Tensor) or any(isinstance(size, torch.SymInt) for size in value.shape):
        return None
    return tuple(value.shape)
