"""Tensors with too many axes, held as ones of few: patchify and unpatchify go through rank 6 to 8, as VAEs do.

Only what moves data is rewritten, and no number changes: views; permutations, in steps of few axes; what joins, repeats
or takes along one axis, with those ahead and those behind it as one each. What computes on a tensor of too many axes
stays, and ``check`` objects to it.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain, combinations, pairwise, permutations
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.export.rewrite.nodes import VIEWS, become, call, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.export import ExportedProgram
    from torch.fx import Node

aten = torch.ops.aten
LEAST = 4
"""Axes that a step needs: what is before, two groups that change places, what is after."""
SAME_ORDER = (
    *VIEWS,
    aten.reshape.default,
    aten.clone.default,
    aten.alias.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
"""Operators that keep the values in their order."""
JOINS = (aten.stack.default, aten.cat.default)
TAKES = (aten.select.int, aten.slice.Tensor)
Step = tuple[tuple[int, ...], tuple[int, ...]]
"""A shape to view a tensor in, and the permutation of its axes."""


def lower_ranks(program: ExportedProgram, max_rank: int) -> int:
    """Rewrite chains of what moves data, from and to tensors of ``max_rank`` axes, in place.

    Returns:
        How many tensors of more axes are gone. Nothing is done for a ``max_rank`` under 4.
    """
    if max_rank < LEAST:
        return 0
    graph = program.graph_module.graph
    before = _too_many(graph.nodes, max_rank)
    if not before:
        return 0
    holders: dict[Node, Node] = {}
    old = dict.fromkeys(graph.nodes)
    for node in old:
        if shape_of(node) is None or not node.args:
            continue
        if node.target in JOINS or shape_of(node.args[0]) is not None:
            _hold(node, holders, max_rank)
    for node in reversed(list(graph.nodes)):
        if not node.users and (node in holders or node not in old):
            graph.erase_node(node)
    graph.lint()
    program.graph_module.recompile()
    return before - _too_many(graph.nodes, max_rank)


def _hold(node: Node, holders: dict[Node, Node], max_rank: int) -> None:
    """Note what holds a tensor of too many axes: one of few, with the same values in the same order. Or read that."""
    if (axis := _axis(node)) is not None:
        _hold_along(node, axis, holders, max_rank)
        return
    source: Any = node.args[0]
    shape, given, held = shape_of(node) or (), shape_of(source) or (), holders.get(source)
    if node.target in SAME_ORDER and len(shape) > max_rank:
        if held is not None or len(given) <= max_rank:
            holders[node] = held or source
    elif held is not None and node.target in SAME_ORDER:
        become(node, aten.reshape.default, held, list(shape))
    elif held is not None and (order := _order(node)) is not None:
        holders[node] = _permuted(node, held, given, order, max_rank)


def _axis(node: Node) -> int | None:
    """Return the one axis along which a node joins, repeats or takes; None where it does none of these."""
    if node.target is aten.expand.default:
        given, shape = shape_of(node.args[0]) or (), shape_of(node) or ()
        longer = [axis for axis, size in enumerate(given) if size != shape[axis]] if len(given) == len(shape) else []
        return longer[0] if len(longer) == 1 else None
    if node.target not in (*JOINS, *TAKES):
        return None
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(axis) % len((shape_of(node.args[0]) if node.target in TAKES else shape_of(node)) or ())


def _hold_along(node: Node, axis: int, holders: dict[Node, Node], max_rank: int) -> None:
    """Do what a node does along an axis with three axes, where it reads or makes too many."""
    sources: Any = node.args[0] if node.target in JOINS else [node.args[0]]
    shape = shape_of(node) or ()
    tall = [source for source in sources if len(shape_of(source) or ()) > max_rank]
    if not (tall or len(shape) > max_rank) or any(source not in holders for source in tall):
        return
    ahead, behind = prod(shape[:axis]), prod(shape[axis:] if node.target is aten.select.int else shape[axis + 1 :])
    each = [prod(shape_of(source) or ()) // max(1, ahead * behind) for source in sources]
    views = [
        call(node, aten.reshape.default, holders.get(source, source), [ahead, size, behind])
        for source, size in zip(sources, each, strict=True)
    ]
    if node.target in JOINS:
        held = call(node, aten.cat.default, views, 1)
    elif node.target is aten.expand.default:
        held = call(node, aten.expand.default, views[0], [ahead, shape[axis], behind])
    else:
        held = call(node, node.target, views[0], 1, *node.args[2:])
    if len(shape) > max_rank:
        holders[node] = held
    else:
        become(node, aten.reshape.default, held, list(shape))


def _too_many(nodes: Iterable[Node], max_rank: int) -> int:
    return sum(len(shape_of(node) or ()) > max_rank for node in nodes)


def _order(node: Node) -> tuple[int, ...] | None:
    """Return the permutation that a node makes, None where it makes none."""
    rank = len(shape_of(node) or ())
    if node.target is aten.permute.default:
        return tuple(axis % rank for axis in node.args[1])  # type: ignore[union-attr, operator, misc]
    if node.target is aten.transpose.int:
        order, (one, other) = list(range(rank)), (int(axis) % rank for axis in node.args[1:3])  # type: ignore[arg-type]
        order[one], order[other] = other, one
        return tuple(order)
    return None


def _permuted(node: Node, held: Node, shape: tuple[int, ...], order: tuple[int, ...], max_rank: int) -> Node:
    for sizes, step in steps(shape, order, max_rank):
        view = call(node, aten.reshape.default, held, list(sizes))
        held = call(node, aten.permute.default, view, list(step))
    return held


@lru_cache(maxsize=1024)
def steps(shape: tuple[int, ...], order: tuple[int, ...], max_rank: int) -> tuple[Step, ...]:
    """Express ``permute(order)`` of that shape as views and permutations of at most ``max_rank`` axes, 4 or more.

    Every step leaves as few groups of axes to be moved as it can, and so at least one fewer.
    """
    found: list[Step] = []
    sizes, order = merged(shape, order)
    while len(order) > 1:
        grouped, step, sizes, order = min(_choices(sizes, order, max_rank), key=lambda choice: len(choice[3]))
        found.append((grouped, step))
    return tuple(found)


def merged(shape: Sequence[int], order: Sequence[int]) -> Step:
    """Return the same move with fewer axes: none of size 1, and neighbours that stay neighbours as one."""
    moved = [axis for axis in order if shape[axis] != 1]
    place = {axis: index for index, axis in enumerate(sorted(moved))}
    runs: list[list[int]] = []
    for axis in moved:
        if runs and place[axis] == place[runs[-1][-1]] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    source = sorted(runs)
    return tuple(prod(shape[axis] for axis in run) for run in source), tuple(source.index(run) for run in runs)


def _choices(sizes: tuple[int, ...], order: tuple[int, ...], max_rank: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield one step each: the groups' sizes, their permutation, and what is left to be moved, merged."""
    rank = len(sizes)
    if rank <= max_rank:
        yield sizes, order, (), ()
        return
    for count in range(2, max_rank + 1):
        for cuts in combinations(range(1, rank), count - 1):
            groups = [range(*ends) for ends in pairwise((0, *cuts, rank))]
            grouped = tuple(prod(sizes[axis] for axis in group) for group in groups)
            for step in permutations(range(count)):
                layout = list(chain.from_iterable(groups[group] for group in step))
                rest = merged([sizes[axis] for axis in layout], [layout.index(axis) for axis in order])
                yield grouped, step, *rest
