"""Float16 weights and arithmetic for an ONNX model, around what must stay precise.

ONNX Runtime's converter does the work. Two things are mended after it: it adds a cast per reader of a
value, all under one name, which no runtime loads; and it takes precise values through half precision on
their way from one precise node to the next.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import ModelProto, NodeProto

PROTOBUF_LIMIT = 2**31 - 2**25
"""A protobuf holds less than 2 GiB; 32 MiB of it are left for the graph."""
CONTRACTIONS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention")
HALF_MAX = 6e4
"""The converter clips constants to 1e4 unless told otherwise: it would change masks."""
FLOAT, HALF = 1, 10
"""ONNX's numbers of float32 and float16."""


def halve(model: ModelProto, precise: frozenset[str]) -> ModelProto:
    """Convert to float16 except from a precise input to its first contraction. Inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{place}"
    halved = convert_float_to_float16(
        model,
        keep_io_types=True,
        max_finite_val=HALF_MAX,
        node_block_list=precise_nodes(model.graph.node, precise),
        disable_shape_infer=weight_bytes(model) > PROTOBUF_LIMIT,
    )
    nodes = in_order(shortened(once_each(halved.graph.node)), [output.name for output in halved.graph.output])
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del halved.graph.node[:]
    halved.graph.node.extend(copies)
    return halved


def weight_bytes(model: ModelProto) -> int:
    """Count the bytes of all weights. A model above 2 GiB can't say its own size: protobuf refuses to measure it."""
    from onnx.helper import tensor_dtype_to_np_dtype

    return sum(prod(each.dims) * tensor_dtype_to_np_dtype(each.data_type).itemsize for each in model.graph.initializer)


def precise_nodes(nodes: Iterable[NodeProto], precise: frozenset[str]) -> list[str]:
    """Name the nodes that read precise values (and constants) only. Nodes come in order of execution."""
    kept: list[str] = []
    values, others = set(precise), set[str]()
    for node in nodes:
        read = set(node.input)
        if node.op_type not in CONTRACTIONS and read & values and not read & others:
            kept.append(node.name)
            values |= set(node.output)
        elif node.op_type != "Constant":
            others |= set(node.output)
    return kept


def once_each(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Keep the first of the nodes that write one value: repeated casts."""
    seen: set[str] = set()
    first = []
    for node in nodes:
        if node.output[0] not in seen:
            first.append(node)
        seen.update(node.output)
    return first


def shortened(nodes: list[NodeProto]) -> list[NodeProto]:
    """Let readers of a value cast to half and back take the value before."""
    makers = {name: node for node in nodes for name in node.output}
    instead: dict[str, str] = {}
    for node in nodes:
        if not _casts(node, FLOAT):
            continue
        inner = makers.get(node.input[0])
        if inner is not None and _casts(inner, HALF):
            instead[node.output[0]] = inner.input[0]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = _resolved(name, instead)
    return nodes


def in_order(nodes: list[NodeProto], outputs: list[str]) -> list[NodeProto]:
    """Order the nodes that the outputs need, each after those it reads (the converter appends casts at the end)."""
    makers = {name: node for node in nodes for name in node.output}
    ordered: list[NodeProto] = []
    done: set[str] = set()
    waiting = [(makers[name], False) for name in reversed(outputs) if name in makers]
    while waiting:
        node, ready = waiting.pop()
        if node.output[0] in done:
            continue
        if ready:
            done.update(node.output)
            ordered.append(node)
            continue
        waiting.append((node, True))
        waiting += [(makers[name], False) for name in reversed(node.input) if name in makers and name not in done]
    return ordered


def _resolved(name: str, instead: dict[str, str]) -> str:
    while name in instead:
        name = instead[name]
    return name


def _casts(node: NodeProto, dtype: int) -> bool:
    return node.op_type == "Cast" and any(each.name == "to" and each.i == dtype for each in node.attribute)
