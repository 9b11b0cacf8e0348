"""float64 in place of every lower precision, wherever a module asks for one by name."""

from __future__ import annotations

from typing import Any

import torch

WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}


def widened(value: Any) -> Any:
    """A dtype or device among an operation's arguments → the one in use: float64, on the CPU."""
    if isinstance(value, torch.dtype):
        return WIDE.get(value, value)
    return torch.device("cpu") if isinstance(value, torch.device) and value.type != "cpu" else value
