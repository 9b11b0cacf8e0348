"""What torch gathers anew for each trace, gathered once: most of the time of tracing a module of a few layers.

The operators that may stay whole (torch asks the dispatcher for each of its namespaces), and the translations to ONNX
(onnxscript parses the sources of all). A process that registers further operators gathers the former again. And
``py_impl``, called ten thousand times a trace, makes the types of its annotations no more.
"""

from __future__ import annotations

import inspect
import textwrap
from functools import cache
from typing import Any

import torch


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
    without_types = compile(
        "from __future__ import annotations\n" + textwrap.dedent(inspect.getsource(torch._ops.OperatorBase.py_impl)),
        torch._ops.__file__,
        "exec",
    )
    made: dict[str, Any] = {}
    exec(without_types, vars(torch._ops), made)
    torch._ops.OperatorBase.py_impl = made["py_impl"]


def translate_once() -> None:
    """Change its exporter to ONNX in this process."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    translate = ONNXRegistry.from_torchlib
    ONNXRegistry.from_torchlib = staticmethod(cache(lambda opset_version=18: translate(opset_version)))
