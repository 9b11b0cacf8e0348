"""From a component to an ONNX model: trace, rewrite, translate, halve."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.files import disk_errors
from dit_compress.core.progress import quiet
from dit_compress.export.inspection import module_path, operator_name, operators
from dit_compress.export.types import Diagnostic
from dit_compress_plugins.export_onnx.half import PROTOBUF_LIMIT, halve, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onnx import ModelProto

    from dit_compress.export import Component, Precision


def convert(component: Component, precision: Precision, opset: int) -> ModelProto:
    """Convert the component to a model with float32 inputs and outputs of fixed shapes.

    Raises:
        UserError: the exporter of torch refuses the program.
    """
    import torch

    program = component.program
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                (),
                kwargs=dict(component.inputs),
                dynamo=True,
                opset_version=opset,
                input_names=list(component.inputs),
                output_names=list(component.outputs),
                verbose=False,
            )
            model: ModelProto = exported.model_proto  # type: ignore[union-attr]
    except Exception as error:
        what = f"torch can't translate it to ONNX: {root_cause(error)}"
        raise UserError(what, where=f"component {component.name}") from error
    forget_source(model)
    share_constants(model)
    if precision == "float32":
        return model
    with quiet():
        return halve(model, frozenset(component.precise))


def untranslated(component: Component, opset: int) -> list[Diagnostic]:
    """List operators that are left when torch has decomposed what ONNX lacks, and that it can't translate."""
    from torch._ops import OpOverload

    with quiet():
        known, table = _translations(opset)
        left = list(operators(component.program))
        if not all(known.is_registered(node.target) for node in left):  # else there is nothing that it would decompose
            left = list(operators(component.program.run_decompositions(table)))
    what, mend = "torch has no translation of it to ONNX", "Write it with operators that ONNX has"
    missing = {
        (operator_name(node), module_path(node))
        for node in left
        if isinstance(node.target, OpOverload)
        and not str(node.target).startswith(("aten._assert", "aten.sym_"))
        and not known.is_registered(node.target)
    }
    return [Diagnostic(name, path, "error", what, mend) for name, path in sorted(missing)]


@cache
def _translations(opset: int) -> tuple[Any, Any]:
    """Return the tables that ``torch.onnx.export`` takes: translations, and decompositions to what is in those."""
    from torch.onnx._internal.exporter import _decomp, _registration  # torch has no public way to ask

    known = _registration.ONNXRegistry.from_torchlib(opset_version=opset)
    implemented = set(_decomp.get_onnx_implemented_overloads(known))
    return known, _decomp.create_onnx_friendly_decomposition_table(implemented)


def save(model: ModelProto, path: Path) -> None:
    """Write the model; above 2 GiB the weights go to ``<name>.onnx.data``."""
    import onnx

    large = weight_bytes(model) > PROTOBUF_LIMIT
    with disk_errors(path):
        if large:
            onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
        else:
            path.write_bytes(model.SerializeToString(deterministic=True))


def share_constants(model: ModelProto) -> None:
    """Keep one of equal weights, and of equal nodes that read weights alone; in place.

    torch transposes a weight anew for each of its readers: a graph of several steps would hold it once per step.
    """
    from onnx.numpy_helper import to_array

    graph, first, instead = model.graph, dict[Any, str](), dict[str, str]()
    for each in graph.initializer:
        key: tuple[Any, ...] = (each.data_type, tuple(each.dims), sha256(to_array(each).tobytes()).digest())
        instead[each.name] = first.setdefault(key, each.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        if len(node.output) == 1 and all(name in instead for name in node.input):
            key = (node.op_type, node.domain, *node.input, *(each.SerializeToString() for each in node.attribute))
            instead[node.output[0]] = first.setdefault(key, node.output[0])
    kept = {*first.values(), *(output.name for output in graph.output)}
    _delete(graph.initializer, lambda each: each.name not in kept)
    _delete(graph.node, lambda node: node.output[0] in instead and node.output[0] not in kept)


def _delete(items: Any, unwanted: Callable[[Any], bool]) -> None:
    """Delete from a protobuf's list without a copy of what stays."""
    for place in reversed(range(len(items))):
        if unwanted(items[place]):
            del items[place]


def forget_source(model: ModelProto) -> None:
    """Drop stack traces and names of source files: they differ between machines."""

    def clean(item: Any) -> None:
        del item.metadata_props[:]
        item.doc_string = ""

    clean(model)
    for graph in (model.graph, *model.functions):
        clean(graph)
        for each in (*graph.node, *getattr(graph, "value_info", ())):
            clean(each)
    for each in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        clean(each)
