"""From a component to the bytes of a ``.pte``: trace, rewrite, delegate to XNNPACK; and what has no kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_compress.errors import UserError, root_cause
from dit_compress.export.tracing import module_path, operator_name, operators, trace
from dit_compress.export.types import Diagnostic
from dit_compress.progress import quiet

if TYPE_CHECKING:
    from dit_compress.export.types import Component

CONVOLUTION = torch.ops.aten.convolution.default
MEND = "Write it with operators that ExecuTorch has, or export this component to another target"
VIEWS = frozenset({"getitem", "aten.view", "aten.alias", "aten.detach", "aten.lift_fresh_copy"})
"""Operators of a traced program that become none, or another name, in ExecuTorch."""
INTERNAL = ("aten._assert", "aten.sym_", "<built-in")


def convert(component: Component) -> bytes:
    """The component as a program with float32 inputs and outputs of fixed shapes.

    Raises:
        UserError: ExecuTorch refuses the program.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            edge = to_edge_transform_and_lower(trace(component), partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
        except Exception as error:
            what = f"ExecuTorch can't lower it: {root_cause(error)}"
            raise UserError(what, where=f"component {component.name}", mend=MEND) from error


def without_kernel(component: Component) -> list[Diagnostic]:
    """Operators that neither XNNPACK nor the portable library can run; the file would be written all the same.

    The program is decomposed to core operators, and each must be in the runtime's own registry. Convolutions
    over three axes are in it by name, and fail when they run.
    """
    with quiet():
        from executorch.runtime import Runtime

        known = {name.split("::")[-1].split(".")[0] for name in Runtime.get().operator_registry.operator_names}
        program = trace(component).run_decompositions(torch.export.default_decompositions())
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
    return list(found.values())


def _has_kernel(name: str, known: set[str]) -> bool:
    plain = name.removeprefix("aten.")
    return plain in known or f"{plain}_copy" in known
