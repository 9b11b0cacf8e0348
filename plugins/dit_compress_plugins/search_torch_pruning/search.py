"""Rank units by an importance of Torch-Pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_pruning.pruner import importance as library

from dit_compress.core.errors import UserError
from dit_compress.search.importance import top
from dit_compress.search.problem import Search, SearchProblem, Selection
from dit_compress.search.trial import trial
from dit_compress.step.context import Context
from dit_compress_plugins.search_torch_pruning.groups import library_group, rows_of, uneven

if TYPE_CHECKING:
    from dit_compress.step.workplace import Workplace
    from dit_compress.structure.facts import Axis
    from dit_compress_plugins.search_torch_pruning import TorchPruningOptions

CLASSES = {
    "magnitude": (library.GroupMagnitudeImportance, ("p", "normalizer")),
    "taylor": (library.GroupTaylorImportance, ("multivariable", "normalizer")),
    "hessian": (library.GroupHessianImportance, ("normalizer",)),
    "lamp": (library.LAMPImportance, ("p",)),
    "fpgm": (library.FPGMImportance, ("p", "normalizer")),
}
"""By name: the library's class, and the options it takes besides the reduction."""


class TorchPruningSearch(Search):
    """Search ``{use: torch_pruning, importance: …}``."""

    def __init__(self, options: TorchPruningOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Workplace) -> Selection:
        """Rank within each axis."""
        axes = [axis for axis in problem.axes if axis.name not in problem.fixed]
        tensors = {
            name: value.detach()
            for name, value in problem.denoiser.module.named_parameters(remove_duplicate=False)
            if value.is_floating_point()
        }
        gradients = self.gradients(problem, context, axes, tensors)
        scores = {axis.name: self.score(axis, tensors, gradients) for axis in axes}
        kept = {name: top(score, problem.keep[name]) for name, score in scores.items()}
        return Selection(
            {**kept, **problem.fixed}, {"scores": {name: score.tolist() for name, score in scores.items()}}
        )

    def gradients(
        self, problem: SearchProblem, context: Workplace, axes: list[Axis], tensors: dict[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """Return what the importance takes for gradients, by name; None where it reads weights alone.

        Taylor: the mean gradient. Hessian: the mean of each sample's squared gradient, which the library puts into
        ``.grad`` as well; its own ``accumulate_grad`` (1.6) keeps the last sample's only.
        """
        options = self.options
        if options.objective is None:
            return None
        if not isinstance(context, Context):
            raise UserError(
                f"the importance {options.importance!r} looks at data, and a call without a recipe has none",
                mend="Take one that reads weights alone (magnitude, lamp, fpgm), or write a recipe",
            )
        squared = options.importance == "hessian"
        alone = {"batch": 1, "batches": options.batches * options.batch} if squared else {}
        names = [name for name in tensors if any(_owns(axis, name) for axis in axes)]
        total = {name: torch.zeros_like(tensors[name]) for name in names}
        with trial(problem, context, options.objective, options.model_copy(update=alone)) as measured:
            for found in measured.weight_gradients(names):
                for name, value in found.items():
                    total[name] += (value.square() if squared else value).cpu() / len(measured.batches)
        return total

    def score(self, axis: Axis, tensors: dict[str, Tensor], gradients: dict[str, Tensor] | None) -> Tensor:
        """Return the library's scores of an axis' units ``[U]``; a UserError where it has none."""
        options = self.options
        if options.importance == "fpgm" and (name := uneven(tensors, axis)):
            raise UserError(
                f"{axis.name}: fpgm measures distances between blocks, and they differ in {name!r}",
                mend="Take another 'importance', or leave the level out",
            )
        weights = rows_of(tensors, axis, vectors=options.bias)
        if not weights:
            raise UserError(
                f"{axis.name}: its units own no matrix that {options.importance} could score",
                mend="Take the search taylor, or leave the level out",
            )
        slopes = None if gradients is None else rows_of(gradients, axis, vectors=options.bias)
        scores = self.importance()(library_group(weights, slopes))
        if not torch.isfinite(scores).all():
            raise UserError(
                f"{axis.name}: {options.importance} gives scores that are not finite: "
                f"{'the gradient of the objective is zero there' if _all_zero(slopes) else 'its units are alike'}",
                mend="Take an 'objective' with the data's loss (flow)"
                if _all_zero(slopes)
                else "Set 'normalizer: null'",
            )
        return scores.detach()

    def importance(self) -> Any:
        """Construct the library's importance."""
        kind, names = CLASSES[self.options.importance]
        chosen = {name: getattr(self.options, name) for name in names}
        return kind(group_reduction=self.options.reduction, **chosen)


def _owns(axis: Axis, name: str) -> bool:
    """Tell whether a tensor is one of an axis' units'."""
    if axis.blocks:
        return name.startswith(tuple(f"{block}." for block in axis.blocks.blocks))
    return any(member.tensor == name for member in axis.members)


def _all_zero(slopes: dict[str, Tensor] | None) -> bool:
    return slopes is not None and not any(bool(value.any()) for value in slopes.values())
