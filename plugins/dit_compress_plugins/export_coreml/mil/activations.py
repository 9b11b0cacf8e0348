"""Activation functions and softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_compress_plugins.export_coreml.mil.registry import number, operator

SIGMOID_GELU = 1.702
"""Slope of MIL's SIGMOID_APPROXIMATION of GELU."""


@operator("relu")
def relu(x: Tensor) -> Tensor:
    """Compute ``max(x, 0)``."""
    return x.relu()


@operator("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """Compute ``1 / (1 + exp(-x))``."""
    return x.sigmoid()


@operator("silu")
def silu(x: Tensor) -> Tensor:
    """Compute ``x · sigmoid(x)``."""
    return F.silu(x)


@operator("softplus")
def softplus(x: Tensor) -> Tensor:
    """Compute ``log(1 + exp(x))``."""
    return F.softplus(x, threshold=80.0)


@operator("leaky_relu")
def leaky_relu(x: Tensor, alpha: Any) -> Tensor:
    """Return ``x`` where positive, else ``alpha · x``."""
    return F.leaky_relu(x, number(alpha))


@operator("elu")
def elu(x: Tensor, alpha: Any) -> Tensor:
    """Return ``x`` where positive, else ``alpha · (exp(x) - 1)``."""
    return F.elu(x, number(alpha))


@operator("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Compute GELU by erf, by tanh, or as ``x · sigmoid(1.702·x)``."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(SIGMOID_GELU * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@operator("softmax")
def softmax(x: Tensor, axis: Any) -> Tensor:
    """Take the softmax over one axis."""
    return x.softmax(int(number(axis)))
