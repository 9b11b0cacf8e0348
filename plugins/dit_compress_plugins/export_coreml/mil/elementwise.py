"""Elementwise operators of one, two or three inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_compress_plugins.export_coreml.mil.registry import OPERATORS, number, operator

UNARY = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": torch.clone,
    "logical_not": torch.logical_not,
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}
BINARY = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "real_div": torch.div,
    "sub": torch.sub,
}


def _unary(compute: Any) -> Any:
    def function(x: Tensor) -> Tensor:
        return compute(x)

    return function


def _binary(compute: Any) -> Any:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return compute(x, y)

    return function


OPERATORS.update({name: _unary(compute) for name, compute in UNARY.items()})
OPERATORS.update({name: _binary(compute) for name, compute in BINARY.items()})

DTYPES = {"fp16": torch.float32, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}
"""Half precision is float32 that the interpreter rounds."""


@operator("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """Cast to another dtype; floats are cut towards zero."""
    return x.to(DTYPES.get(dtype, torch.int32))


@operator("clip")
def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute ``min(max(x, alpha), beta)``."""
    return x.clamp(number(alpha), number(beta))


@operator("inverse")
def inverse(x: Tensor, epsilon: Any = 1e-4) -> Tensor:
    """Compute ``1 / (x + epsilon)``: the default epsilon is why a reciprocal must not be traced."""
    return 1 / (x + number(epsilon))


@operator("log")
def log(x: Tensor, epsilon: Any = 1e-45) -> Tensor:
    """Compute ``log(x + epsilon)``."""
    return torch.log(x + number(epsilon))


@operator("rsqrt")
def rsqrt(x: Tensor, epsilon: Any = 1e-12) -> Tensor:
    """Compute ``1 / sqrt(x + epsilon)``."""
    return torch.rsqrt(x + number(epsilon))


@operator("select")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``a`` where the condition holds, else ``b``."""
    return torch.where(cond.bool(), a, b)
