"""A frozen denoiser in fewer bytes: the weights of the linears inside its blocks in bfloat16, or in 8 bits.

They are widened when they are used, one matrix at a time, to what the call computes in: the arithmetic is as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dit_compress.train.targets import linears

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.model.denoiser import Denoiser

LEVELS = 127
"""Of an 8-bit weight, to either side of 0."""


def hold(denoiser: Denoiser, dtype: str) -> Denoiser:
    """Keep a frozen denoiser in ``bfloat16`` or ``int8``; ``float32`` leaves it as it is."""
    if dtype == "float32":
        return denoiser
    for name in linears(denoiser):
        linear = denoiser.module.get_submodule(name)
        linear.requires_grad_(requires_grad=False)
        kind = Eighths() if dtype == "int8" else Halves()
        # Unsafe: the kept tensor is of another type than the weight.
        parametrize.register_parametrization(linear, "weight", kind, unsafe=True)
    return denoiser


def is_held(denoiser: Denoiser) -> bool:
    """Tell whether :func:`hold` narrowed some of it."""
    return any(parametrize.is_parametrized(item) for item in denoiser.module.modules())


def widened(denoiser: Denoiser, originals: Mapping[str, Tensor]) -> None:
    """Give the linears that :func:`hold` narrowed the weights that they had, of a state dict of the module."""
    for name, linear in denoiser.module.named_modules():
        if parametrize.is_parametrized(linear, "weight"):
            parametrize.remove_parametrizations(linear, "weight")
            linear.weight = nn.Parameter(originals[f"{name}.weight"], requires_grad=False)


class Halves(nn.Module):
    """A weight in bfloat16."""

    def forward(self, kept: Tensor) -> Tensor:
        """Return the weight, as the call computes."""
        return kept.to(_working(kept))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """Return what is kept; a tuple, of which torch allows another type."""
        return (weight.to(torch.bfloat16),)


class Eighths(nn.Module):
    """A weight ``[O,I]`` in 8 bits: ``scale[O]·q``, the largest of each row at 127."""

    def forward(self, kept: Tensor, scale: Tensor) -> Tensor:
        """Return the weight, as the call computes."""
        return (kept * scale).to(_working(kept))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is kept: q ``[O,I]`` and scale ``[O,1]``; rows of zeros have a scale of 1."""
        largest = weight.float().abs().amax(dim=1, keepdim=True)
        scale = torch.where(largest > 0, largest / LEVELS, 1.0)
        return (weight / scale).round().to(torch.int8), scale


def _working(kept: Tensor) -> torch.dtype:
    device = kept.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
