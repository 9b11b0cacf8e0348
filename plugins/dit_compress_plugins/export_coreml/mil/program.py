"""A saved package, loaded and executed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_compress.core.errors import UserError, root_cause
from dit_compress_plugins.export_coreml.mil import (
    activations,  # noqa: F401 - registers its operators
    compressed,  # noqa: F401 - registers its operators
    contractions,  # noqa: F401 - registers its operators
    elementwise,  # noqa: F401 - registers its operators
    reductions,  # noqa: F401 - registers its operators
    shapes,  # noqa: F401 - registers its operators
)
from dit_compress_plugins.export_coreml.mil.registry import OPERATORS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress.export.compare import Arithmetic

HALF = "fp16"


class MilProgram:
    """One function of a MIL program, executed operator by operator in torch.

    Floating values are float32 tensors. In ``float16`` arithmetic every result whose dtype in the file
    is fp16 is rounded to it (so an overflow becomes an infinity, as on a device); in ``float32`` none is.
    Constants have the file's values in both.
    """

    def __init__(self, function: Any, where: str) -> None:
        self.where = where
        self.inputs: tuple[str, ...] = tuple(function.inputs)
        self.outputs: tuple[str, ...] = tuple(var.name for var in function.outputs)
        self._operations = [each for each in function.operations if not _is_constant(each)]
        self._constants = {
            var.name: _value(var.val) for each in function.operations if _is_constant(each) for var in each.outputs
        }
        self._check()
        self._last_use = self._plan_release()

    def operators(self) -> dict[str, int]:
        """Count how often each operator occurs."""
        names = [each.op_type for each in self._operations]
        return {name: names.count(name) for name in sorted(set(names))}

    @torch.no_grad()
    def run(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        """Execute the function; outputs by name, as float32 or integer arrays."""
        missing = set(self.inputs) - inputs.keys()
        if missing:
            raise UserError(f"the program needs inputs {sorted(missing)}", where=self.where)
        values: dict[str, Any] = {name: _floats(torch.from_numpy(np.array(inputs[name]))) for name in self.inputs}
        for place, each in enumerate(self._operations):
            results = self._execute(each, values)
            for var, result in zip(each.outputs, results, strict=True):
                values[var.name] = _rounded(result, var) if arithmetic == "float16" else result
            for name in self._last_use.get(place, ()):
                values.pop(name, None)
        return {name: self._fetch(name, values).numpy() for name in self.outputs}

    def _execute(self, operation: Any, values: dict[str, Any]) -> tuple[Any, ...]:
        arguments = {}
        for name, given in operation.inputs.items():
            if isinstance(given, (tuple, list)):
                arguments[name] = [_floats(self._fetch(var.name, values)) for var in given]
            elif given is not None:
                arguments[name] = _floats(self._fetch(given.name, values))
        result = OPERATORS[operation.op_type](**arguments)
        return result if isinstance(result, tuple) else (result,)

    def _fetch(self, name: str, values: dict[str, Any]) -> Any:
        return values[name] if name in values else self._constants[name]

    def _check(self) -> None:
        """Raise unless every operator is known, before anything is computed."""
        unknown = sorted({each.op_type for each in self._operations} - OPERATORS.keys())
        if unknown:
            raise UserError(
                f"the MIL interpreter has no operator {', '.join(unknown)}",
                where=self.where,
                mend="Add a function for it in export_coreml/mil, or verify the package on a Mac",
            )

    def _plan_release(self) -> dict[int, list[str]]:
        """Return after which operation a value is not needed any more."""
        last: dict[str, int] = {}
        for place, each in enumerate(self._operations):
            for given in each.inputs.values():
                for var in given if isinstance(given, (tuple, list)) else (given,):
                    if var is not None:
                        last[var.name] = place
        release: dict[int, list[str]] = {}
        for name, place in last.items():
            if name not in self.outputs:
                release.setdefault(place, []).append(name)
        return release


def load_program(package: Path) -> MilProgram:
    """Load the main function of a ``.mlpackage`` on disk; errors as of :func:`load_functions`."""
    return load_functions(package)["main"]


def load_functions(package: Path) -> dict[str, MilProgram]:
    """Load every function of a ``.mlpackage`` on disk, by name.

    Raises:
        UserError: the package is damaged, or has an operator that the interpreter lacks.
    """
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    try:
        spec = coremltools.utils.load_spec(str(package))
        weights = package / "Data" / "com.apple.CoreML" / "weights"
        program = load(spec, spec.specificationVersion, str(weights))
        functions = {name: program.functions[name] for name in ("main", *program.functions)}
    except Exception as error:
        what = f"can't load the package: {root_cause(error)}"
        raise UserError(what, where=str(package), mend="Export the bundle again") from error
    return {name: MilProgram(function, str(package)) for name, function in functions.items()}


def _is_constant(operation: Any) -> bool:
    return operation.op_type == "const"


def _value(value: Any) -> Any:
    """Read a constant: arrays and numbers as tensors, strings as they are."""
    if isinstance(value, (str, bool)) or value is None:
        return value
    array = np.asarray(value)
    return str(value) if array.dtype.kind in "US" else torch.from_numpy(np.array(array))


def _floats(value: Any) -> Any:
    """Widen half precision: the interpreter computes in float32."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _rounded(value: Any, var: Any) -> Any:
    """Round a value to half precision where the file says so."""
    from coremltools.converters.mil.mil import types

    is_half = isinstance(value, Tensor) and value.is_floating_point() and types.builtin_to_string(var.dtype) == HALF
    return value.half().float() if is_half else value
