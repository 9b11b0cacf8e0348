"""A component in half precision, for targets whose converters take the precision of the module.

Weights are rounded to float16 and everything but the precise inputs enters as float16; the interface stays
float32. A model computes the path of its precise inputs as it does in half precision anywhere: diffusers'
and the reference DiT's sinusoids take a float32 sigma in float32.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from dit_compress.export.rewrite import rewrite_modules


class HalfInside(nn.Module):
    """float32 in and out, float16 between."""

    def __init__(self, module: nn.Module, precise: tuple[bool, ...]) -> None:
        super().__init__()
        self.module, self.precise = module, precise

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the module's outputs as float32."""
        given = [
            value if exact or not value.is_floating_point() else value.half()
            for value, exact in zip(inputs, self.precise, strict=True)
        ]
        result = self.module(*given)
        several = result if isinstance(result, (tuple, list)) else (result,)
        return tuple(value.float() for value in several)


def halved(module: nn.Module, precise: tuple[bool, ...]) -> HalfInside:
    """Return a half-precision copy of a module. precise: by input, whether it stays in float32."""
    return HalfInside(copy.deepcopy(rewrite_modules(module)).half(), precise)
