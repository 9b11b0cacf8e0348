"""What a pruned module should compute, made without the toolkit: the whole module with what is gone at zero.

What is gone is read off the modules themselves: a block that stands nowhere any more is skipped, as its author says; of
a tensor that is smaller the slices that are missing are set to zero. A channel or a head with zero weights gives zero.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from catalogue import Entry
    from torch import Tensor, nn


@dataclass(frozen=True)
class Cuts:
    """blocks: paths of those that are gone. slices: by parameter, the axis and what is missing along it."""

    blocks: tuple[str, ...]
    slices: dict[str, tuple[int, Tensor]]


class Before:
    """A module before it is pruned in place: a copy of it, and its parts by identity."""

    def __init__(self, module: nn.Module, stacks: dict[str, int]) -> None:
        self.whole = copy.deepcopy(module)
        self.stacks = stacks
        self.parts = dict(module.named_modules())  # held: an identity may not be given to another
        self.size = sum(parameter.numel() for parameter in module.parameters())

    def cuts(self, pruned: nn.Module) -> Cuts:
        """Find what of it is not in the pruned module."""
        own = {id(part): path for path, part in self.parts.items()}
        left = {own[id(part)] for part in pruned.modules() if id(part) in own}
        blocks = tuple(path for path in self._blocks() if path not in left)
        slices: dict[str, tuple[int, Tensor]] = {}
        for part in pruned.modules():
            for name, small in part.named_parameters(recurse=False):
                path = ".".join(filter(None, (own[id(part)], name)))
                found = missing(self.whole.get_parameter(path), small)
                if found is not None:
                    slices[path] = found
        return Cuts(blocks, slices)

    def _blocks(self) -> list[str]:
        """Paths of all blocks: the items of lists, of lists inside lists, and single ones."""
        found = []
        for stack in self.stacks:
            patterns = [path.split(".") for path in self.parts]
            wanted = stack.split(".")
            inside = [parts for parts in patterns if _matches(parts, wanted)]
            holds = isinstance(self.parts.get(stack), torch.nn.ModuleList | torch.nn.ModuleDict)
            if holds:
                below = [parts for parts in patterns if parts[: len(wanted)] == wanted]
                inside, deeper = ([parts for parts in below if len(parts) == len(wanted) + more] for more in (1, 2))
                lists = all(isinstance(self.parts[".".join(parts)], torch.nn.ModuleList) for parts in inside)
                inside = deeper if lists else inside
            found += [".".join(parts) for parts in inside]
        return found

    def output(self, cuts: Cuts, entry: Entry, change: dict[str, Tensor] | None = None) -> Any:
        """Of the whole module with the cuts made; change: what is added to parameters first."""
        module = copy.deepcopy(self.whole)
        with torch.no_grad():
            for name, value in (change or {}).items():
                module.get_parameter(name).add_(value)
            for name, (dim, gone) in cuts.slices.items():
                module.get_parameter(name).index_fill_(dim, gone, 0.0)
            for path in cuts.blocks:
                # Not a hook: the block must not run, it may write into what it is given.
                module.get_submodule(path).forward = lambda *args, **kwargs: entry.skipped(args, kwargs)
            return module(*entry.arguments())


def _matches(parts: list[str], wanted: list[str]) -> bool:
    return len(parts) == len(wanted) and all(want in ("*", part) for part, want in zip(parts, wanted, strict=True))


def missing(large: Tensor, small: Tensor) -> tuple[int, Tensor] | None:
    """Where a tensor was cut; None where it was not, or where what is left has other values (a norm, rescaled)."""
    dims = [dim for dim in range(large.ndim) if large.shape[dim] != small.shape[dim]]
    if len(dims) != 1:
        return None
    rows, left = (tensor.detach().movedim(dims[0], 0).reshape(tensor.shape[dims[0]], -1) for tensor in (large, small))
    kept, place = [], 0
    for row in left:
        while place < len(rows) and not torch.equal(rows[place], row):
            place += 1
        kept.append(place)
        place += 1
    if place > len(rows):
        return None
    gone = torch.ones(len(rows), dtype=torch.bool)
    gone[kept] = False
    return dims[0], gone.nonzero()[:, 0]
