"""From a component to a MIL program: trace, rewrite, convert."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.progress import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.fx import Node

    from dit_compress.export import Component, Precision

CONTRACTIONS = ("linear", "matmul", "conv", "einsum", "scaled_dot_product_attention")
UNASKED = ("executorch", "sklearn", "xgboost", "libsvm")
"""What coremltools imports for converters that are not used here: most of the time that its own import takes."""
PRECISE_DEPTH = 32
"""Longest chain of operators between a precise input and its first contraction."""


def convert(component: Component, precision: Precision, minimum_os: str) -> Any:
    """Convert the component to an ``MLModel`` with float32 inputs and outputs of fixed shapes.

    Raises:
        UserError: coremltools refuses the program.
    """
    program = component.program
    with quiet():
        with without_unasked():
            import coremltools

        try:
            return coremltools.convert(
                program,
                outputs=[coremltools.TensorType(name=name) for name in component.outputs],
                convert_to="mlprogram",
                compute_precision=_precision(component, precision),
                minimum_deployment_target=getattr(coremltools.target, minimum_os),
                compute_units=coremltools.ComputeUnit.CPU_ONLY,
                skip_model_load=True,
            )
        except Exception as error:
            what = f"coremltools can't convert it: {root_cause(error)}"
            raise UserError(what, where=f"component {component.name}") from error


def has_translation(node: Node) -> bool:
    """Tell whether coremltools knows the operator."""
    with without_unasked():
        from coremltools.converters.mil.frontend.torch.torch_op_registry import (
            _TORCH_OPS_REGISTRY,  # coremltools has no public way to ask
        )

    name = str(node.target)
    return not name.startswith("aten.") or _TORCH_OPS_REGISTRY.get_func(name.split(".")[1]) is not None


@contextmanager
def without_unasked() -> Iterator[None]:
    """Import coremltools in here: it finds none of ``UNASKED``, and takes them for absent, which it allows."""
    absent = [name for name in UNASKED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type] # None: not to be imported
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _precision(component: Component, precision: Precision) -> Any:
    """Choose half precision except on the way from a precise input to its first contraction."""
    import coremltools

    if precision == "float32":
        return coremltools.precision.FLOAT32
    if not component.precise:
        return coremltools.precision.FLOAT16
    names = frozenset(component.precise)
    return coremltools.transform.FP16ComputePrecision(op_selector=lambda op: not stays_precise(op, names))


def stays_precise(operation: Any, names: frozenset[str], depth: int = PRECISE_DEPTH) -> bool:
    """Tell whether all that an operator reads comes from precise inputs, without a contraction in between."""
    if operation.op_type in CONTRACTIONS or depth == 0:
        return False
    read = []
    for given in operation.inputs.values():
        read += [var for var in (given if isinstance(given, (tuple, list)) else (given,)) if var is not None]
    varying = [var for var in read if var.val is None]
    return bool(varying) and all(
        var.name in names if var.op is None else stays_precise(var.op, names, depth - 1) for var in varying
    )
