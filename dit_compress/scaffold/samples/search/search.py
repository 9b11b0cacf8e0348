"""Rank the units of every axis by the norm of their weights, and keep the first.

Shapes: U units of an axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from dit_compress.search.importance import top
from dit_compress.search.problem import Search, SearchProblem, Selection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis, Member
    from torch import Tensor, nn

    from dit_compress.scaffold.samples.search import ExampleOptions


class ExampleSearch(Search):
    """Part ``search: {use: example}``. How many units stay is settled before; it chooses which."""

    def __init__(self, options: ExampleOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Context) -> Selection:  # type: ignore[override]  # data=True
        """Keep exactly ``problem.keep[axis.name]`` units of every axis; those in ``problem.fixed`` are settled already.

        ``context`` gives clips, latents and a seed. Random numbers come from
        ``dit_compress.core.randomness.generator(context.seed, "example", ...)``.
        """
        scores = {axis.name: self.score(problem.denoiser.module, axis) for axis in problem.axes}
        kept = {name: top(score, problem.keep[name]) for name, score in scores.items()}
        history = {"scores": {name: score.tolist() for name, score in scores.items()}}
        return Selection({**kept, **problem.fixed}, history)

    @torch.no_grad()
    def score(self, module: nn.Module, axis: Axis) -> Tensor:
        """Score each unit, ``[U]``; the largest stay. Change this: the one idea of your search."""
        if axis.blocks is not None:
            blocks = [module.get_submodule(axis.blocks.block(index)) for index in range(axis.units)]
            return torch.stack([self.norm([each.flatten() for each in block.parameters()]) for block in blocks])
        tensors = dict(module.named_parameters())
        members = [member for member in axis.members if member.tensor in tensors]
        return torch.stack(
            [self.norm([self.slices(tensors, member, unit) for member in members]) for unit in range(axis.units)]
        )

    def norm(self, pieces: list[Tensor]) -> Tensor:
        """Return ``(Σ |w|^power)^(1 / power)`` over all pieces."""
        return torch.linalg.vector_norm(torch.cat(pieces).float(), self.options.power)

    @staticmethod
    def slices(tensors: Mapping[str, Tensor], member: Member, unit: int) -> Tensor:
        """Return the entries that one unit owns of one tensor, flat."""
        index = torch.from_numpy(member.indices[unit])
        return tensors[member.tensor].index_select(member.dim, index).flatten()
