"""The step: name the axes, settle the counts, search the units, compact, prove."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import write_json
from dit_compress.model.cut import compact
from dit_compress.model.figures import count_parameters
from dit_compress.search.problem import SearchProblem, check_search
from dit_compress.step.context import Result
from dit_compress.structure.edits import span
from dit_compress.structure.modulation import timetable_of
from dit_compress_plugins.prune_trilevel.counts import check_met, settle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress.step.workplace import Workplace
    from dit_compress.structure.facts import Axis
    from dit_compress_plugins.prune_trilevel import Budget, TrilevelOptions
    from dit_compress_plugins.prune_trilevel.counts import Counts


class TrilevelPruning:
    """Step ``prune: {use: trilevel, …}``."""

    def __init__(self, options: TrilevelOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Return the pruned model's shape: the counts are settled, which units go does not matter for it."""
        denoiser = spec.build_denoiser().to("meta")
        before = count_parameters(denoiser.module)
        counts = settle(self.options, denoiser, spec, place=None)
        check_met(counts, self.options.budget, counts.first())
        problem = SearchProblem(denoiser, counts.axes, counts.keep, counts.num_parts, counts.blocks)
        check_search(self.options.search, problem, settled=not counts.estimated)
        entry = compact(denoiser, counts.axes, counts.first())
        after = self.within_limit(denoiser)
        note = f"{before:,} → {after:,} parameters"
        budget = self.options.budget
        if budget is not None:
            note = f"{note}: {described(counts)}"
            if counts.estimated:
                note += ", an estimate by the formula: what is measured when the step runs settles the allocation"
            note = "; ".join([note, *unmeasured(budget, counts, denoiser), *counts.left_alone])
        return replace(spec, denoiser=spec.need_denoiser().appended(entry), notes=(*spec.notes, note))

    def run(self, context: Context) -> Result:
        """Prune the input's denoiser and write a bundle."""
        denoiser, spec = context.input.denoiser(), context.input.spec
        spec = replace(spec, video=context.video or spec.video, data="data" in context.parts)
        entry, found = self.prune(denoiser, spec, context)
        given = context.give({"denoiser": denoiser.module}, log=[entry], metrics=found.metrics)
        return replace(given, files=found.files)

    def prune(self, denoiser: Denoiser, spec: Spec, place: Workplace) -> tuple[dict[str, Any], Result]:
        """Search, compact in place, prove on a recorded call. Works without a run, where nothing asks for data."""
        before = count_parameters(denoiser.module)
        counts = settle(self.options, denoiser, spec, place)
        for note in unmeasured(self.options.budget, counts, denoiser):
            place.say(note)
        problem = SearchProblem(denoiser, counts.axes, counts.keep, counts.num_parts, counts.blocks)
        selection = self.options.search.build().search(problem, place)
        place.world = place.world.disband()  # where the search had nothing to train
        kept = counts.kept(selection.kept)
        check_met(counts, self.options.budget, kept)
        entry = compact(denoiser, counts.axes, kept)
        after = self.within_limit(denoiser)
        write_json(place.folder / "search.json", selection.history, indent=None)
        record = dict(entry["data"]["kept"].items())
        write_json(place.folder / "kept.json", {"axes": _layout(counts.axes), "kept": record}, indent=None)
        files = {"search": "search.json", "kept": "kept.json"}
        for name, data in counts.files.items():
            write_json(place.folder / f"{name}.json", data)
            files[name] = f"{name}.json"
        metrics: dict[str, Any] = {"params_before": before, "params_after": after, "params_kept": after / before}
        metrics |= {"left_alone": list(counts.left_alone)} if counts.left_alone else {}
        metrics |= {"curves": counts.curves} if counts.curves else {}
        metrics |= {"trials": counts.trials} if counts.trials else {}
        if counts.price is not None and counts.price.unit != "parameters":
            metrics[counts.price.unit.lower()] = counts.price.of(counts.axes, kept)
        return entry, Result(metrics=metrics, files=files)

    def within_limit(self, denoiser: Denoiser) -> int:
        """Count parameters of the pruned model; raise a UserError above ``limit``."""
        params = count_parameters(denoiser.module)
        limit = self.options.limit
        if limit is not None and params > limit.params:
            raise UserError(
                f"the pruned model has {params:,} parameters, the limit is {limit.params:,}",
                mend="Remove more, or raise 'limit'",
            )
        return params


def unmeasured(budget: Budget | None, counts: Counts, denoiser: Denoiser) -> list[str]:
    """Say that a budget is shared out by the formula, where nothing can be measured."""
    if budget is None or budget.curves is not None or counts.estimated or counts.curves not in ("default", "each"):
        return []
    folded = timetable_of(denoiser.module) is not None
    why = "the modulation is a table for a few noise levels" if folded else "there is no data"
    return [f"{why} to measure sensitivity on: the budget is shared out by the paper's proportions"]


def described(counts: Counts) -> str:
    """Show ``20 of 28 block, 20 of 32 head, 6144 of 8192 ffn``; ranges where axes differ."""
    found: dict[str, dict[tuple[int, int], None]] = {}
    for axis in counts.axes:
        found.setdefault(axis.level, {})[counts.keep[axis.name], axis.units] = None
    return ", ".join(
        f"{span(keep for keep, _ in sizes)} of {span(of for _, of in sizes)} {level}" for level, sizes in found.items()
    )


def _layout(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Return where each axis stands, for the report's picture."""
    return [{"name": a.name, "level": a.level, "units": a.units, "stack": a.stack, "block": a.block} for a in axes]
