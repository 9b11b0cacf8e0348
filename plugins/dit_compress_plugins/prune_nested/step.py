"""The step: rank the units, settle what each width keeps, prove every width; or cut one out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import write_json
from dit_compress.model.cut import compact
from dit_compress.model.figures import count_parameters
from dit_compress.plugin import defaults
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.levels import found_axes, kind_of, named_levels
from dit_compress.search.problem import SearchProblem, check_search
from dit_compress.structure.copies import shared_copy
from dit_compress.structure.nesting import CUT_OUT, Nesting, need_nesting, nesting_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import Spec
    from dit_compress.plugin.options import Part
    from dit_compress.search.problem import Selection
    from dit_compress.step.context import Context, Result
    from dit_compress.structure.facts import Axis, Granularity
    from dit_compress_plugins.prune_nested import NestedOptions

Order = tuple[int, ...]
"""The units of an axis, the most important first."""


class NestedPruning:
    """Step ``prune: {use: nested, …}``."""

    def __init__(self, options: NestedOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Return the model with its widths, of the right shapes; which units they keep does not matter for it."""
        component = spec.need_denoiser()
        if self.options.take is not None:
            return spec.narrowed(self.options.take)
        if (found := nesting_of(component.log)) is not None:
            raise UserError(f"it has nested widths already: {found}", mend=CUT_OUT)
        denoiser = spec.build_denoiser().to("meta")
        widths = Widths.of(self.options, denoiser)
        check_search(self.search, widths.problem(denoiser), settled=True)
        nesting, sizes = widths.proven(denoiser, lambda axis: tuple(range(axis.units)))
        note = ", ".join(f"{size:,} at {width}" for width, size in sizes.items())
        return replace(spec, denoiser=component.appended(nesting.entry()), notes=(*spec.notes, f"parameters: {note}"))

    def run(self, context: Context) -> Result:
        """Write the input again, with widths that can be cut out of it; or one of them."""
        denoiser = context.input.denoiser()
        if self.options.take is not None:
            return self.taken(context)
        widths = Widths.of(self.options, denoiser)
        selection = self.search.build().search(widths.problem(denoiser), context)
        context.world = context.world.disband()  # where the search had nothing to train
        nesting, sizes = widths.proven(denoiser, lambda axis: order_of(axis, selection, self.search.name))
        write_json(context.folder / "search.json", selection.history, indent=None)
        metrics = {"widths": {width: {"params": size} for width, size in sizes.items()}}
        given = context.give({"denoiser": denoiser.module}, log=[nesting.entry()], metrics=metrics)
        return replace(given, files={"search": "search.json"})

    def taken(self, context: Context) -> Result:
        """Write the input cut to one of its widths."""
        assert self.options.take is not None
        before, narrowed = context.spec(), context.input.narrowed(self.options.take)
        entry = need_nesting(before.need_denoiser().log).cut(self.options.take)
        module = narrowed.denoiser().module
        sizes = count_parameters(before.outline().module), count_parameters(module)
        metrics = {"params_before": sizes[0], "params_after": sizes[1], "params_kept": sizes[1] / sizes[0]}
        return context.give({"denoiser": module}, log=[entry], metrics=metrics)

    @property
    def search(self) -> Part:
        """What ranks the units."""
        return self.options.search or make_part("search", defaults.SEARCH, installed())


def order_of(axis: Axis, selection: Selection, search: str) -> Order:
    """Return an axis' units, the most important first; UserError where the search ranks none.

    A search ranks by ``scores`` in its history, as those do that others can begin from.
    """
    scores = selection.history.get("scores", {}).get(axis.name)
    if scores is None:
        raise UserError(
            f"the search {search!r} chooses units of {axis.name} and ranks none, and widths are nested by a rank",
            mend="Take one that ranks them: magnitude, taylor, greedy, mixed",
        )
    return tuple(torch.argsort(torch.as_tensor(scores), descending=True, stable=True).tolist())


@dataclass(frozen=True)
class Widths:
    """What each width keeps of each axis. counts: width below 1 → axis name → units."""

    levels: Sequence[str]
    axes: tuple[Axis, ...]
    counts: Mapping[float, Mapping[str, int]]
    num_parts: Mapping[str, int]

    @classmethod
    def of(cls, options: NestedOptions, denoiser: Denoiser) -> Widths:
        """Settle the counts; raise a UserError where two widths come to the same."""
        levels = named_levels(options.levels, lambda name: f"'levels' names {name!r}")
        by_level, _ = found_axes(levels, denoiser)
        axes = tuple(axis for found in by_level.values() for axis in found)
        counts = {
            width: {axis.name: count(axis, width, levels[name]) for name, found in by_level.items() for axis in found}
            for width in options.widths
        }
        previous: float | None = None
        for width, here in counts.items():
            if previous is not None and here == counts[previous]:
                raise UserError(
                    f"the widths {previous:g} and {width:g} keep the same units of this model: it has too few",
                    mend="Leave one of them out, or name more 'levels'",
                )
            previous = width
        del counts[1]
        num_parts = {kind_of(name): level.num_parts for name, level in levels.items() if level.num_parts}
        return cls(options.levels, axes, counts, num_parts)

    def problem(self, denoiser: Denoiser) -> SearchProblem:
        """Return what a search is asked: the smallest width, so that it looks at every unit that may go."""
        return SearchProblem(denoiser, self.axes, self.counts[min(self.counts)], self.num_parts)

    def proven(self, denoiser: Denoiser, order: Callable[[Axis], Order]) -> tuple[Nesting, dict[str, int]]:
        """Cut every width out of a copy, proven; the nesting, and the parameters of each width by its name."""
        least = self.counts[min(self.counts)]
        orders = {axis.name: order(axis) for axis in self.axes if least[axis.name] < axis.units}
        cuts: dict[float, Mapping[str, Any]] = {}
        sizes: dict[str, int] = {}
        for width, counts in self.counts.items():
            kept = {name: tuple(sorted(units[: counts[name]])) for name, units in orders.items()}
            small = shared_copy(denoiser)
            cuts[width] = compact(small, self.axes, kept)["data"]
            sizes[f"{width:g}"] = count_parameters(small.module)
        sizes["1"] = count_parameters(denoiser.module)
        return Nesting(tuple(self.levels), cuts), sizes


def count(axis: Axis, width: float, level: Granularity) -> int:
    """Return how many units a width keeps: the nearest multiple of the level's step, and one step at least."""
    step = level.multiple_of if axis.units >= level.multiple_of else 1
    return axis.units if width == 1 else min(axis.units, max(step, int(width * axis.units / step + 0.5) * step))
