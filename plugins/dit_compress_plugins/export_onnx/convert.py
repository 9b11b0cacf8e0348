"""From a component to an ONNX model: trace, rewrite, translate, halve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.errors import UserError, root_cause
from dit_compress.export.tracing import trace
from dit_compress.files import disk_errors
from dit_compress.progress import quiet
from dit_compress_plugins.export_onnx.half import PROTOBUF_LIMIT, halve

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import ModelProto

    from dit_compress.export import Component, Precision


def convert(component: Component, precision: Precision, opset: int) -> ModelProto:
    """The component as a model with float32 inputs and outputs of fixed shapes.

    Raises:
        UserError: the exporter of torch refuses the program.
    """
    import torch

    program = trace(component)
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
    if precision == "float32":
        return model
    with quiet():
        return halve(model, frozenset(component.precise))


def save(model: ModelProto, path: Path) -> None:
    """Write the model; above 2 GiB the weights go to ``<name>.onnx.data``."""
    import onnx

    large = model.ByteSize() > PROTOBUF_LIMIT
    with disk_errors(path):
        if large:
            onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
        else:
            path.write_bytes(model.SerializeToString(deterministic=True))


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
