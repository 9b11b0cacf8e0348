"""Small models of diffusers for tests of modulation: one class of each way in which blocks are modulated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.pruning.recorded import RecordedDenoiser
from dit_compress.structure.record import Call

if TYPE_CHECKING:
    from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "zoo"))

from models import build

QWEN, FLUX = "QwenImageTransformer2DModel", "FluxTransformer2DModel"
TABLES = {
    QWEN: ("timestep", 8),
    "AuraFlowTransformer2DModel": ("timestep", 12),
    "CogVideoXTransformer3DModel": ("timestep", 8),
    "MiniMaxH3Transformer3DModel": ("timestep", 4),
    "PRXTransformer2DModel": ("timestep", 4),
    "ZImageTransformer2DModel": ("t", 6),
}
"""The argument that all of a class's modulation reads, and the number of its linears: 4 blocks, by the sources."""
MIXED = {
    FLUX: ({"timestep", "pooled_projections"}, 12),
    "SD3Transformer2DModel": ({"timestep", "pooled_projections"}, 8),
    "HunyuanVideoTransformer3DModel": ({"timestep", "guidance", "pooled_projections"}, 12),
    "MochiTransformer3DModel": ({"timestep", "encoder_hidden_states"}, 8),
}
"""Classes whose blocks read more than the timestep: the arguments, and how many linears do."""
UNMODULATED = (
    "WanTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "PixArtTransformer2DModel",
    "Flux2Transformer2DModel",
)
"""Classes that modulate their blocks by tables, or by one linear for all."""


def recorded(name: str) -> tuple[RecordedDenoiser, dict[str, Any]]:
    """A model with random weights, and the arguments of a call."""
    module, inputs = build(name)
    return RecordedDenoiser(module, Call((), inputs, recorded=True)), inputs


def called(module: nn.Module, inputs: dict[str, Any], argument: str, time: float) -> torch.Tensor:
    """What a model gives for other features of as many tokens, at a timestep."""
    torch.manual_seed(7)
    others = {
        key: torch.randn_like(value) if isinstance(value, torch.Tensor) and value.ndim > 2 else value
        for key, value in inputs.items()
    }
    others[argument] = torch.full_like(inputs[argument], time, dtype=torch.float32)
    with torch.no_grad():
        output = module(**others)[0]
    return output[0] if isinstance(output, list | tuple) else output
