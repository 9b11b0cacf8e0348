"""What torch gathers anew for each trace, gathered once: most of the time of tracing a module of a few layers.

The operators that may stay whole (torch asks the dispatcher for each of its namespaces), the kernels that keep them whole
(twenty for each of them, twice a trace), and the translations to ONNX (onnxscript parses the sources of all). A process
that registers further operators gathers the former again. What torch notes of where a node came from is shared by those
that come from it, not copied for each. And what coremltools proves anew after each pass, proven once.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def gather_once() -> None:
    """Change torch in this process."""
    from torch._export import utils
    from torch.export import decomp_utils, exported_program

    gather = cache(lambda registered: utils._collect_all_valid_cia_ops())

    def whole_operators() -> set[Any]:
        registered = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        return set(gather(frozenset(registered)))

    exported_program._collect_all_valid_cia_ops = whole_operators
    decomp_utils._collect_all_valid_cia_ops = whole_operators
    exported_program._override_composite_implicit_decomp = _kept_whole(
        exported_program._override_composite_implicit_decomp
    )


def _kept_whole(override: Callable[..., Any]) -> Callable[..., Any]:
    """``override``, which gives operators other kernels for a while; those that keep an operator whole are made once."""
    from torch._export.utils import _special_op_to_preserve_cia as whole
    from torch._subclasses.fake_impls import op_implementations_dict as rules

    made: dict[Any, tuple[dict[Any, Any], dict[Any, Any], Any]] = {}

    @contextmanager
    def overridden(wanted: dict[Any, Callable[..., Any]]) -> Iterator[None]:
        before = {op: dict(op.py_kernels) for op, way in wanted.items() if way is whole}
        known = {op: made[op][1:] for op, kernels in before.items() if op in made and made[op][0] == kernels}
        with override({op: way for op, way in wanted.items() if op not in known}):
            for op in before.keys() - known.keys():
                made[op] = (before[op], dict(op.py_kernels), rules.get(op))
            for op, (kernels, rule) in known.items():
                _give(op, kernels)
                rules.setdefault(op, rule)
            try:
                yield
            finally:
                for op in known:
                    _give(op, before[op])
                    rules.pop(op, None)

    return overridden


def _give(op: Any, kernels: dict[Any, Any]) -> None:
    op.py_kernels.clear()
    op.py_kernels.update(kernels)
    op._dispatch_cache.clear()


def share_sources() -> None:
    """Change its graphs in this process: a fifth of lowering a program of some hundred nodes was copying their history."""
    from torch.fx.traceback import NodeSource

    NodeSource.__deepcopy__ = lambda source, _memo: source


def translate_once() -> None:
    """Change its exporter to ONNX in this process."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    translate = ONNXRegistry.from_torchlib
    ONNXRegistry.from_torchlib = staticmethod(cache(lambda opset_version=18: translate(opset_version)))


def validate_once() -> None:
    """Change coremltools in this process: a program is validated after some ninety passes, not after each of them."""
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    apply = PassPipelineManager.apply_pipeline

    def applied(program: Any, passes: Any) -> None:
        program.validate = lambda **_: None
        try:
            apply(program, passes)
        finally:
            del program.validate
        program.validate()

    PassPipelineManager.apply_pipeline = staticmethod(applied)
