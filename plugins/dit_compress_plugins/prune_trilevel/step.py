"""The step: name the axes, settle the counts, search the units, compact, prove."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.errors import UserError
from dit_compress.files import write_json
from dit_compress.measure import count_parameters
from dit_compress.plugins import installed
from dit_compress.recipe import make_part
from dit_compress.structure.budget import allocate, costs
from dit_compress.structure.compact import compact
from dit_compress.structure.search import SearchProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.context import Context, Result
    from dit_compress.denoiser import Denoiser
    from dit_compress.hooks import Granularity
    from dit_compress.spec import Spec
    from dit_compress.structure.axes import Axis
    from dit_compress_plugins.prune_trilevel import TrilevelOptions

LEVELS = ("block", "head", "ffn")
"""What a budget may cut."""


class TrilevelPruning:
    """Step ``prune: {use: trilevel, …}``."""

    def __init__(self, options: TrilevelOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """The pruned model's shape: the counts are settled, which units go does not matter for it."""
        denoiser = spec.build_denoiser().to("meta")
        before = count_parameters(denoiser.module)
        axes, keep = self.counts(denoiser)
        entry = compact(denoiser, axes, {axis.name: tuple(range(keep[axis.name])) for axis in axes})
        after = self.within_limit(denoiser)
        digits = 0 if after > 1e8 else 2
        note = f"{before / 1e6:,.{digits}f}M → {after / 1e6:,.{digits}f}M parameters"
        return replace(spec, denoiser=spec.need_denoiser().appended(entry), notes=(*spec.notes, note))

    def run(self, context: Context) -> Result:
        """Search, compact, prove on a recorded call, write."""
        denoiser = context.input.denoiser()
        before = count_parameters(denoiser.module)
        axes, keep = self.counts(denoiser)
        levels = self.granularities()
        units = {name: level.units for name, level in levels.items() if level.units}
        problem = SearchProblem(denoiser, tuple(axes), keep, units)
        selection = self.options.search.build().search(problem, context)
        entry = compact(denoiser, axes, selection.kept)
        after = self.within_limit(denoiser)
        write_json(context.folder / "search.json", selection.history)
        kept = dict(entry["data"]["kept"].items())
        write_json(context.folder / "kept.json", {"axes": _layout(axes), "kept": kept})
        metrics = {"params_before": before, "params_after": after, "params_kept": after / before}
        result = context.give({"denoiser": denoiser.module}, log=[entry], metrics=metrics)
        return replace(result, files={"search": "search.json", "kept": "kept.json"})

    def granularities(self) -> dict[str, Granularity]:
        """The levels this step may cut."""
        if self.options.levels is not None:
            return {name: part.build() for name, part in self.options.levels.items()}
        return {name: make_part("granularity", name, installed()).build() for name in LEVELS}

    def counts(self, denoiser: Denoiser) -> tuple[list[Axis], dict[str, int]]:
        """All axes, and how many units of each stay."""
        structure, levels = denoiser.structure(), self.granularities()
        by_level = {name: level.axes(structure) for name, level in levels.items()}
        for name, axes in by_level.items():
            if not axes:
                reasons = "; ".join(f"{item.path}: {item.reason}" for item in structure.refusals[:3])
                raise UserError(f"granularity {name!r} finds nothing to remove in this model", mend=reasons)
        everything = [axis for axes in by_level.values() for axis in axes]
        if self.options.budget is None:
            keep = {axis.name: _explicit(levels[name], axis) for name, axes in by_level.items() for axis in axes}
        else:
            keep = self._allocate(denoiser, levels, by_level)
        return everything, keep

    def _allocate(
        self, denoiser: Denoiser, levels: Mapping[str, Granularity], by_level: Mapping[str, list[Axis]]
    ) -> dict[str, int]:
        budget = self.options.budget
        assert budget is not None
        axes = [axis for found in by_level.values() for axis in found]
        priced = costs(denoiser.module, axes, denoiser.structure().main.length)
        steps = {name: level.multiple_of for name, level in levels.items()}
        removed = allocate(priced, steps, budget.params)
        return {axis.name: axis.units - removed.get(axis.level, 0) for axis in axes}

    def within_limit(self, denoiser: Denoiser) -> int:
        """Parameters of the pruned model; UserError above ``limit``."""
        params = count_parameters(denoiser.module)
        limit = self.options.limit
        if limit is not None and params > limit.params:
            raise UserError(
                f"the pruned model has {params:,} parameters, the limit is {limit.params:,}",
                mend="Remove more, or raise 'limit'",
            )
        return params


def _explicit(level: Granularity, axis: Axis) -> int:
    keep = level.keep(axis)
    if keep is None:
        raise UserError(f"level {axis.level!r} has neither 'remove' nor 'keep'", mend="Give a count, or use 'budget'")
    if not 1 <= keep <= axis.units:
        raise UserError(f"{axis.name} has {axis.units} units and would keep {keep}", mend=f"Keep 1 to {axis.units}")
    return keep


def _layout(axes: list[Axis]) -> list[dict[str, Any]]:
    """Where each axis stands, for the report's picture."""
    return [{"name": a.name, "level": a.level, "units": a.units, "stack": a.stack, "block": a.block} for a in axes]
