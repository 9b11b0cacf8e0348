"""RMSNorm that stays finite in half precision and that converters lower as it is written.

For any row x of width D and any m > 0, with y = x/m:

    x / sqrt(mean(x²) + eps)  =  y / sqrt(mean(y²) + eps/m²)

With m = max(max|x|, sqrt(eps)) every intermediate value lies in [0, 1] and the square root is at least
1/sqrt(D): nothing overflows at |x| = 60000, a zero row gives zeros, and a row far below sqrt(eps) keeps
its share of the epsilon. Shapes: D width, ``...`` anything before it.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor  # what torch.export traces with

from dit_compress.core.errors import UserError

FLOOR = 1e-4
"""Smallest divisor: half precision has full accuracy down to 6e-5."""
EPSILONS = ("eps", "variance_epsilon", "epsilon")
BOUND = 1e-5
"""Largest difference of a replacement from its original, relative to the output's peak."""


class ScaledRMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) · weight + bias`` over the last axis, divided by max|x| first."""

    root_eps: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.floor = max(math.sqrt(eps), FLOOR)
        # A tensor: "number / tensor" is traced as a reciprocal, which Core ML computes as 1/(m + 1e-4).
        # Of rank 0: it goes with tensors of any device and takes their dtype.
        self.register_buffer("root_eps", torch.tensor(math.sqrt(eps), device="cpu"))
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., D]``; the shape stays."""
        largest = x.abs().amax(-1, keepdim=True).clamp(min=self.floor)
        y, root = x / largest, self.root_eps / largest
        y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + root * root)
        if self.weight is not None:
            y = y * self.weight
        return y if self.bias is None else y + self.bias


def rewrite_modules(module: nn.Module) -> nn.Module:
    """Copy the module in eval mode, its RMSNorms replaced. The copy shares the weights.

    Raises:
        UserError: a module is called RMSNorm and computes something else.
    """
    changed = share_copy(module).eval()
    if is_rms_norm(changed):
        return replacement(changed, type(changed).__name__)
    for path, child in list(changed.named_modules()):
        if is_rms_norm(child):
            changed.set_submodule(path, replacement(child, path))
    return changed


def share_copy(module: nn.Module) -> nn.Module:
    """Return a deep copy whose parameters and buffers are those of the original."""
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def is_rms_norm(module: nn.Module) -> bool:
    """Tell whether a class has RMSNorm in its name: torch's, diffusers', the project's, somebody's own."""
    return "RMSNorm" in type(module).__name__ and not isinstance(module, ScaledRMSNorm)


def replacement(module: nn.Module, path: str) -> ScaledRMSNorm:
    """Return the scaled form of a norm, compared with it on rows large, small and zero."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    eps = next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), None)
    width = weight.shape[-1] if weight is not None else _width(module)
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    scaled = ScaledRMSNorm(eps, *(None if tensor is None else tensor.detach() for tensor in (weight, bias)))
    if not _agree(module, scaled, width):
        raise UserError(
            f"{type(module).__name__} is not RMSNorm over the last axis",
            where=path,
            mend="Rename the class, or replace it by x / sqrt(mean(x²) + eps) · weight",
        )
    return scaled


def _width(module: nn.Module) -> int:
    """Return width of a norm without weight, where the module states it; any other number serves to compare."""
    for name in ("normalized_shape", "dim"):
        value = getattr(module, name, None)
        if value is not None:
            return int(value if isinstance(value, int) else tuple(value)[-1])
    return 32


@torch.no_grad()
def _agree(module: nn.Module, scaled: nn.Module, width: int) -> bool:
    """Tell whether both give the same on four rows; tensors without values leave nothing to compare."""
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors):
        return True
    dtype = tensors[0].dtype if tensors else torch.float32
    row = torch.linspace(-1.5, 2.0, width).to(device=tensors[0].device if tensors else "cpu", dtype=torch.float32)
    rows = torch.stack([row, row * 300, row * 1e-3, row * 0])[None].to(dtype)
    wanted, found = module(rows), scaled(rows)
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    bound = BOUND if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    difference = (wanted.double() - found.double()).abs().amax(-1)
    return bool((difference <= bound * wanted.double().abs().amax(-1) + 1e-12).all())
