"""Groups of Torch-Pruning's dependency graph as axes: what a channel owns, and where a mask silences it."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch_pruning import ops
from torch_pruning.dependency import index_mapping

from dit_compress.structure.facts import Axis, MaskPoint, Member
from dit_compress.structure.raised import raised
from dit_compress_plugins.prune_channels.parts import LAYERS, blocks_of, calls_of, layers_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch import Tensor
    from torch_pruning.dependency import Group

    from dit_compress.structure.record import Call

PASSING = (
    ops.OPTYPE.ELEMENTWISE, ops.OPTYPE.CONCAT, ops.OPTYPE.SPLIT, ops.OPTYPE.RESHAPE, ops.OPTYPE.UNBIND,
    ops.OPTYPE.EXPAND, ops.OPTYPE.SLICE,
)  # fmt: skip
"""Operations of the graph that hold nothing of a channel."""
OTHER_AXES = tuple(getattr(index_mapping, f"_{name}IndexMapping") for name in ("GQA", "Slice", "Flatten"))
LOOKS = 10
"""Times the square of its number of edges that a graph may look at an edge, over all of its groups."""
LEVEL = "channel"


class Unclear(Exception):  # noqa: N818 - the reason why something is left alone
    """A group that can't be cut, and why."""


@dataclass(frozen=True)
class Channels:
    """One group: as the library has it, and as an axis of the whole codec."""

    group: Group
    axis: Axis
    layers: tuple[str, ...]


def channels_of(codec: nn.Module, latent: Tensor, tensors: Collection[str]) -> tuple[list[Channels], dict[str, str]]:
    """Find the groups of channels inside the blocks of a decoder.

    Args:
        codec: with values; its ``forward`` decodes.
        latent: one to decode.
        tensors: names of the decoder's tensors; no other is cut.

    Returns:
        The groups; and the layers in none of them, each with the reason.
    """
    layers = layers_of(codec, tensors)
    blocks = blocks_of(layers)
    left = dict.fromkeys(layers, "it stands in no block of several layers")
    calls = calls_of(codec, latent, blocks)
    found: list[Channels] = []
    for path, held in blocks.items():
        if path not in calls:
            left |= dict.fromkeys(held, f"{path!r} is no block that is called")
            continue
        groups, reasons = _of_block(codec.get_submodule(path), path, calls[path])
        left |= dict.fromkeys(held, "Torch-Pruning's graph does not reach it") | reasons
        found += groups
    cut = {layer for channels in found for layer in channels.layers}
    return found, {layer: reason for layer, reason in left.items() if layer not in cut}


def _of_block(block: nn.Module, path: str, call: Call) -> tuple[list[Channels], dict[str, str]]:
    """Return the groups inside a block, and why layers of it are left alone."""
    traced = copy.deepcopy(block).requires_grad_(requires_grad=True)
    names = {part: f"{path}.{name}" for name, part in traced.named_modules() if name}
    names |= {value: f"{path}.{name}" for name, value in traced.named_parameters()}
    tensors: dict[str, Tensor] = {f"{path}.{name}": value for name, value in traced.named_parameters()}
    layers = [name for part, name in names.items() if isinstance(part, LAYERS)]
    found, left = list[Channels](), dict[str, str]()
    try:
        for graph, group in _groups(traced, call):
            root = names[group[0].dep.target.module]
            try:
                found.append(_channels(graph, group, names, tensors))
            except Unclear as reason:
                left[root] = str(reason)
    except Unclear as reason:
        return found, left | dict.fromkeys(layers, str(reason))
    except Exception as error:  # noqa: BLE001 - the library fails in any way on what it does not know
        return [], dict.fromkeys(layers, f"Torch-Pruning fails on {path!r}: {raised(error)}")
    return found, left


def _groups(block: nn.Module, call: Call) -> Iterator[tuple[Any, Group]]:
    """Yield the library's groups of a block, by a call of it."""
    graph = torch_pruning.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        given = call.map(torch.Tensor.clone)
        graph.build_dependency(block, given, forward_fn=lambda part, one: part(*one.args, **one.kwargs), verbose=False)
        _forget_other_axes(graph)
        _limit(graph)
        for group in graph.get_all_groups(root_module_types=LAYERS):
            yield graph, group


def _forget_other_axes(graph: Any) -> None:
    """Let reshapes, repeats, and slices of other axes pass channels on as they are; the proof tells where it is wrong.

    The library takes a slice of frames for one of channels, any expanded tensor of five axes for grouped queries, and
    follows pixels that are shuffled into channels and back without end.
    """
    for node in graph.module2node.values():
        frames = node.type == ops.OPTYPE.SLICE and node.module.dim != 1
        if frames or node.type in (ops.OPTYPE.EXPAND, ops.OPTYPE.RESHAPE):
            node.type = ops.OPTYPE.ELEMENTWISE
            around = [dep for other in (node, *node.inputs, *node.outputs) for dep in other.dependencies]
            for dep in around:
                if node in (dep.source, dep.target) and isinstance(dep.index_mapping[0], OTHER_AXES):
                    dep.index_mapping[0] = None


def _limit(graph: Any) -> None:
    """Raise :class:`Unclear` where the library goes round in circles: each edge may be looked at so often."""
    edges = [dep for node in graph.module2node.values() for dep in node.dependencies]
    looks = count()

    def triggered(dep: Any, function: Any) -> bool:
        if next(looks) > LOOKS * len(edges) ** 2:
            raise Unclear("Torch-Pruning's graph goes round in circles there")
        return function == dep.trigger

    for dep in edges:
        dep.is_triggered_by = partial(triggered, dep)


def _channels(graph: Any, group: Group, names: dict[Any, str], tensors: dict[str, Tensor]) -> Channels:
    """Turn a group into an axis; raise :class:`Unclear` where it can't be one."""
    units = len(group[0].idxs)
    members: list[Member] = []
    masks: list[MaskPoint] = []
    layers: list[str] = []
    for item in group:
        target = item.dep.target
        if target.type in PASSING:
            continue
        if target.type == ops.OPTYPE.OUTPUT:
            raise Unclear("its channels leave the block")
        name, indices = names[target.module], _indices(item, units)
        if target.type == ops.OPTYPE.PARAMETER:
            members.append(Member(name, target.pruning_dim, indices))
        elif isinstance(target.module, LAYERS) and getattr(target.module, "groups", 1) == 1:
            layers.append(name)
            out = graph.is_out_channel_pruning_fn(item.dep.handler)
            members += [Member(f"{name}.weight", 0 if out else 1, indices)]
            members += [Member(f"{name}.bias", 0, indices)] if out and target.module.bias is not None else []
            dim = -1 if isinstance(target.module, nn.Linear) else 1
            masks.append(MaskPoint(name, "output" if out else "input", indices, dim))
        else:
            raise Unclear(f"a {type(target.module).__name__} stands over its channels")
    for member in members:
        if member.indices.max() >= tensors[member.tensor].shape[member.dim]:
            raise Unclear(f"the graph loses its channels at {member.tensor!r}")
    if not any(point.side == "input" for point in masks):
        raise Unclear("no layer of the block takes its channels in")
    axis = Axis(f"{LEVEL}:{layers[0]}", LEVEL, units, layers[0].rpartition(".")[0], 0, tuple(members), tuple(masks))
    return Channels(group, axis, tuple(layers))


def _indices(item: Any, units: int) -> np.ndarray:
    """Return what each unit owns of a layer ``[U, n]``."""
    roots, own = np.asarray(item.root_idxs, dtype=object), np.asarray(item.idxs)
    if any(root is None for root in roots) or len(own) % units:
        raise Unclear(f"the graph loses its channels at {item.dep.target.name!r}")
    roots = roots.astype(int)
    if (np.bincount(roots, minlength=units) != len(own) // units).any() or len(set(own.tolist())) < len(own):
        raise Unclear(f"the graph loses its channels at {item.dep.target.name!r}")
    return own[np.argsort(roots, kind="stable")].reshape(units, -1)
