"""The table from MIL operator to the function that computes it.

A function takes the operator's inputs by their MIL names (``x``, ``y``, ``axes`` …): tensors for
tensors, Python values for strings and scalars that are not tensors. Floating tensors are float32
whatever their dtype in the file; the interpreter rounds results. Functions state the defaults of the
MIL specification for inputs that a file leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Function = Callable[..., Any]

OPERATORS: dict[str, Function] = {}
"""Every operator the interpreter knows."""


def operator(*names: str) -> Callable[[Function], Function]:
    """Register a function under the MIL names it computes."""

    def register(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def ints(value: Any) -> list[int]:
    """Return a tensor, sequence or number as a list of integers."""
    if isinstance(value, Tensor):
        return [int(each) for each in value.reshape(-1).tolist()]
    return [int(each) for each in value] if isinstance(value, (list, tuple)) else [int(value)]


def number(value: Any) -> float:
    """Return a tensor with one element, or a number, as a number."""
    return float(value.reshape(-1)[0]) if isinstance(value, Tensor) else float(value)


def flag(value: Any) -> bool:
    """Return a tensor with one element, or a boolean, as a boolean."""
    return bool(number(value))
