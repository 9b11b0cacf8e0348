"""Linears of a denoiser by name: those inside blocks, and those that a LoRA is for."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.train.options import Lora


def linears(denoiser: Denoiser) -> list[str]:
    """Name every linear inside the blocks of a denoiser's module."""
    inside = (block for stack in denoiser.structure().stacks for block in stack.blocks)
    return [name for block in inside for name in linears_of(denoiser.module.get_submodule(block), f"{block}.")]


def linears_of(module: nn.Module, prefix: str = "") -> list[str]:
    """Name every linear of a module."""
    named = module.named_modules()
    return [f"{prefix}{name}".rstrip(".") for name, item in named if isinstance(item, nn.Linear)]


def targets_of(denoiser: Denoiser, lora: Lora) -> list[str]:
    """Name the linears that get updates: those inside blocks, or those that ``targets`` name.

    Raises UserError where a target names none, or a rank is larger than a side of a matrix.
    """
    found = linears(denoiser)
    if lora.targets is not None:
        every = linears_of(denoiser.module)
        if unknown := [target for target in lora.targets if not any(_names(target, name) for name in every)]:
            raise UserError.join([_unknown(target, every) for target in unknown])
        found = [name for name in every if any(_names(target, name) for target in lora.targets)]
    sides = {name: min(_shape(denoiser.module, name)) for name in found}
    smallest = min(sides, key=lambda name: sides[name])
    if lora.rank > sides[smallest]:
        leaf = _leaf(smallest)
        raise UserError(
            f"'rank: {lora.rank}' of 'lora' is larger than the smaller side of {smallest!r}, {sides[smallest]}",
            mend=f"Lower 'rank' to {sides[smallest]} at most, or give 'targets' without {leaf!r}",
        )
    return found


def count(denoiser: Denoiser, lora: Lora | None) -> int:
    """Count the parameters of the updates; none without LoRA. Makes nothing."""
    if lora is None:
        return 0
    return sum(lora.rank * sum(_shape(denoiser.module, name)) for name in targets_of(denoiser, lora))


def _shape(module: nn.Module, name: str) -> tuple[int, ...]:
    weight: Any = module.get_submodule(name).weight
    return tuple(weight.shape)


def _names(target: str, name: str) -> bool:
    """Tell whether a target names a linear: by its path, the end of it, or a pattern of one."""
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def _leaf(name: str) -> str:
    """Return the last words of a path that say which linear of a block it is: ``to_q``, ``to_out.0``."""
    words = name.split(".")
    return ".".join(words[-2:] if words[-1].isdigit() else words[-1:])


def _unknown(target: str, names: Sequence[str]) -> UserError:
    ends = {_leaf(name) for name in names}
    near = get_close_matches(target, sorted(ends | set(names)), n=3, cutoff=0.5) or sorted(ends)[:6]
    return UserError(
        f"{target!r} of 'targets' of 'lora' names no linear of this denoiser",
        mend=f"There are, by the ends of their paths, {', '.join(map(repr, near))}",
    )
