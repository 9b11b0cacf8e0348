"""From a component to the bytes of a ``.pte``: trace, rewrite, delegate to XNNPACK; and what has no kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.progress import quiet
from dit_compress.export.inspection import module_path, operator_name, operators
from dit_compress.export.rewrite.graph import ATTENTION, is_causal, mask_of
from dit_compress.export.rewrite.nodes import become, call, loosen, shape_of
from dit_compress.export.tracing import copied
from dit_compress.export.types import Diagnostic

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.export import ExportedProgram

    from dit_compress.export.component import Component
    from dit_compress.export.types import Precision

aten = torch.ops.aten
CONVOLUTION = aten.convolution.default
MEND = "Write it with operators that ExecuTorch has, or export this component to another target"
VIEWS = frozenset({"getitem", "aten.view", "aten.alias", "aten.detach", "aten.lift_fresh_copy"})
"""Operators of a traced program that become none, or another name, in ExecuTorch."""
PACKED = frozenset(getattr(aten, name) for name in ("linear", "conv1d", "conv2d", "convolution", "conv_transpose2d"))
"""Operators whose weight and bias XNNPACK copies when a file is loaded."""
INTERNAL = ("aten._assert", "aten.sym_", "<built-in")


def convert(component: Component, precision: Precision) -> tuple[bytes, list[str]]:
    """Convert the component to a program with float32 inputs and outputs of fixed shapes.

    Returns:
        The file, and the operators in it that XNNPACK leaves to portable kernels: one thread, one number at a time.

    Raises:
        UserError: ExecuTorch refuses the program.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            program = open_attention(own_weights(component.in_precision(precision).program))
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            called = {node.target for node in edge.exported_program().graph.nodes if node.op == "call_function"}
            portable = {target.__name__ for target in called} - {"getitem", "executorch_call_delegate"}
            return bytes(edge.to_executorch().buffer), sorted(portable)
        except UserError:
            raise
        except Exception as error:
            what = f"ExecuTorch can't lower it: {root_cause(error)}"
            raise UserError(what, where=f"component {component.name}", mend=MEND) from error


def open_attention(program: ExportedProgram) -> ExportedProgram:
    """Write attention as products and a softmax, which XNNPACK takes; return the program.

    ExecuTorch's own decomposition gives zero where all keys are masked by -inf, in six operators over all scores that
    only portable kernels have. Masks are finite here (``dit_compress/export/rewrite/graph.py``), so that both agree.
    """
    if not any(_opens(node) for node in program.graph.nodes):
        return program
    program = copied(program)
    for node in [node for node in program.graph.nodes if _opens(node)]:
        (q, k, v), mask = node.args[:3], mask_of(node)
        scale = node.kwargs.get("scale") or (shape_of(q) or ())[-1] ** -0.5
        scores = call(node, aten.matmul.default, call(node, aten.mul.Tensor, q, scale), call(node, aten.mT.default, k))
        scores = scores if mask is None else call(node, aten.add.Tensor, scores, mask)
        become(node, aten.matmul.default, call(node, aten.softmax.int, scores, -1), v)
    loosen(program.graph)  # the result lies in memory in another order
    program.graph_module.recompile()
    return program


def _opens(node: Node) -> bool:
    """Tell whether a node is an attention of as many heads everywhere, whose mask, if any, is added."""
    if node.target is not ATTENTION:
        return False
    mask, shapes = mask_of(node), {(shape_of(each) or ())[:-2] for each in node.args[:3]}
    return not is_causal(node) and len(shapes) == 1 and (mask is None or mask.meta["val"].is_floating_point())


def own_weights(program: ExportedProgram) -> ExportedProgram:
    """Give what XNNPACK packs constants of its own; return the program.

    A weight that the program computes from parameters (a linear's as a convolution's of one pixel, a kernel over three
    axes laid flat) is computed here: what is no constant XNNPACK leaves to portable kernels, which took 200 times as
    long (a VAE's decoder). A weight that is packed *and* read otherwise gets a copy for the other readers: XNNPACK
    frees what it has packed; who reads the same constant without packing it then reads freed memory, and the process
    ends (ExecuTorch 1.5.1, files loaded from disk).
    """
    if not any(_others(node) or _computed(node) for node in program.graph.nodes):
        return program
    from executorch.backends.transforms.utils import create_constant_placeholder, get_param_tensor, is_param_node
    from torch.export.graph_signature import InputKind

    program = program.run_decompositions({})  # another program: what was traced serves other exporters too

    def read(node: Node) -> Tensor | None:
        return get_param_tensor(program, node) if is_param_node(program, node) else None

    def constant(name: str, tensor: Tensor, before: Node) -> Node:
        with program.graph.inserting_before(before):
            kind = InputKind.CONSTANT_TENSOR
            return create_constant_placeholder(program, program.graph, name, kind, tensor.detach().clone())

    first = next(iter(program.graph.nodes))
    for node in list(dict.fromkeys(weight for user in program.graph.nodes for weight in _computed(user))):
        tensor = _value(node, read)
        if tensor is not None:
            node.replace_all_uses_with(constant(f"{node.name}_computed", tensor.contiguous(), first))
    program.graph.eliminate_dead_code()
    for node in [node for node in program.graph.nodes if _others(node)]:
        tensor = read(node)
        if tensor is None:
            continue  # an input of the component
        others, own = _others(node), constant(f"{node.name}_unpacked", tensor, node)
        for user in others:
            user.replace_input_with(node, own)
    program.graph_module.recompile()
    return program


def _computed(node: Node) -> list[Node]:
    """List weights and biases of an operator that packs them which other operators compute."""
    if getattr(node.target, "overloadpacket", None) not in PACKED:
        return []
    return [value for value in node.args[1:3] if isinstance(value, Node) and value.op == "call_function"]


def _value(node: Node, read: Callable[[Node], Tensor | None]) -> Tensor | None:
    """Compute a node from parameters; None where it depends on an input of the component."""
    if node.op == "placeholder":
        return read(node)
    sources = {source: _value(source, read) for source in node.all_input_nodes}
    if any(value is None for value in sources.values()):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), sources.__getitem__)
    found: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]  # no name: it calls a function
    return found


def _others(node: Node) -> list[Node]:
    """List readers of a packed placeholder that do not pack it."""
    if node.op != "placeholder":
        return []
    packing = [user for user in node.users if _packs(user, node)]
    return [user for user in node.users if user not in packing] if packing else []


def _packs(user: Node, node: Node) -> bool:
    return getattr(user.target, "overloadpacket", None) in PACKED and node in user.args[1:3] and node != user.args[0]


def without_kernel(component: Component) -> tuple[Diagnostic, ...]:
    """List operators that neither XNNPACK nor the portable library can run; the file would be written all the same.

    The program is decomposed to core operators, and each must be in the runtime's own registry. Convolutions
    over three axes (those that could not be rewritten) are in it by name, and fail when they run.
    """
    with quiet():
        from executorch.runtime import Runtime

        known = {name.split("::")[-1].split(".")[0] for name in Runtime.get().operator_registry.operator_names}
        program = copied(component.program)
        loosen(program.graph)  # decomposed, values may lie in memory as they did not when traced (LTX's VAE)
        program = program.run_decompositions(torch.export.default_decompositions())
    found: dict[tuple[str, str], Diagnostic] = {}
    for node in operators(program):
        name, path = operator_name(node), module_path(node)
        if node.target is CONVOLUTION and node.args[1].meta["val"].ndim > 4:  # type: ignore[union-attr]
            what = "a convolution over three axes: ExecuTorch writes the file and fails when it runs"
        elif name in VIEWS or name.startswith(INTERNAL) or _has_kernel(name, known):
            continue
        else:
            what = "ExecuTorch has no kernel for it"
        found.setdefault((name, path), Diagnostic(name, path, "error", what, MEND))
    return tuple(found.values())


def _has_kernel(name: str, known: set[str]) -> bool:
    plain = name.removeprefix("aten.")
    return plain in known or f"{plain}_copy" in known
