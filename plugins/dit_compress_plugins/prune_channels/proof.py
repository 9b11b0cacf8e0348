"""Cut a codec, and compare it with the whole one under masks, in float64.

A mask silences a channel where it is made and where it is read. An RMS norm between the two takes the mean over
the channels that are left, as it does in the model that is cut.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_compress.structure.apply import apply_edits, replace_tensor
from dit_compress.structure.compact import TOLERANCE, disagreement
from dit_compress.structure.copies import shared_copy
from dit_compress.structure.edits import compile_edits
from dit_compress.structure.lookup import tensor_at
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.structure.precision import in_double
from dit_compress.structure.raised import raised

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import Tensor

    from dit_compress.structure.facts import Axis, Kept


@torch.no_grad()
def distance(codec: nn.Module, latent: Tensor, axes: Sequence[Axis], kept: Kept) -> float:
    """Return max|Δ| / max|reference| between the codec under masks and cut; the codec stays as it is."""
    with in_double(), masked(codec, axes, hard_masks(axes, kept, latent)), norms_of_what_is_left(codec):
        reference = codec(latent)
    small = shared_copy(codec)
    apply_edits(small, compile_edits(codec, axes, kept))
    with in_double():
        return disagreement(small(latent), reference)


def exact(codec: nn.Module, latent: Tensor, axes: Sequence[Axis], kept: Kept) -> dict[str, str]:
    """Return the axes that can't be cut as they are said to be, with what happens; the others can, all together."""
    try:
        apart = distance(codec, latent, axes, {axis.name: kept[axis.name] for axis in axes}) if axes else 0.0
        reason = f"cut and masked differ by {apart:.0e}"
        if apart <= TOLERANCE:
            return {}
    except Exception as error:  # noqa: BLE001 - a wrong cut fails in any way
        reason = f"cut, the decoder fails: {raised(error)}"
    if len(axes) == 1:
        return {axes[0].name: reason}
    half = len(axes) // 2
    return exact(codec, latent, axes[:half], kept) | exact(codec, latent, axes[half:], kept)


@contextmanager
def norms_of_what_is_left(module: nn.Module) -> Iterator[None]:
    """Let RMS norms leave out of their mean the features that are zero everywhere."""
    hooks = []
    for part in module.modules():
        if type(part).__name__ == "RMSNorm":
            factors: list[Tensor] = []

            def before(_part: nn.Module, args: Any, factors: list[Tensor] = factors) -> Any:
                left = (args[0] != 0).flatten(0, -2).any(0).sum().clamp_min(1)
                factors.append((args[0].shape[-1] / left.to(args[0].dtype)).sqrt())
                return (args[0] * factors[-1], *args[1:])

            def after(_part: nn.Module, _args: Any, output: Tensor, factors: list[Tensor] = factors) -> Tensor:
                return output / factors.pop()

            hooks += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def filled(codec: nn.Module, tensors: Collection[str]) -> nn.Module:
    """Return the codec with random values in the named parameters: none is zero, and nothing vanishes on its way.

    What a trained decoder does not use yet (a last layer of zeros) would hide a cut that is wrong.
    """
    probe = shared_copy(codec)
    random = torch.Generator().manual_seed(0)
    for name, value in dict(probe.named_parameters()).items():
        if name in tensors:
            drawn = torch.randn(value.shape, generator=random)
            size = 0.3 if value.ndim < 2 else (value[0].numel()) ** -0.5
            replace_tensor(probe, name, drawn * size if value.ndim > 1 else 1 + drawn * size)
    return probe.requires_grad_(requires_grad=False)


def count(codec: nn.Module, tensors: Collection[str]) -> int:
    """Count the parameters among the named tensors."""
    parameters = {name for name, _ in codec.named_parameters()}
    return sum(tensor_at(codec, name).numel() for name in parameters.intersection(tensors))
