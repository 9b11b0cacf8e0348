"""The number of units of each axis that stay: as the options have it, or as a budget allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.measure.table import measured_table, read_table
from dit_compress.plugin.registry import closest
from dit_compress.search.allocate import SLACK, Question, allocate, allocate_each, settled_blocks, show, uneven
from dit_compress.search.budget import Price, flops_price, parameter_price
from dit_compress.search.curves import Curves, curves_from_report, default_curves
from dit_compress.search.field import enter
from dit_compress.search.importance import magnitude
from dit_compress.search.levels import found_axes, kind_of, named_levels
from dit_compress.step.context import Context
from dit_compress.structure.copies import meta_copy
from dit_compress.structure.modulation import need_any_timestep, timetable_of
from dit_compress_plugins.prune_trilevel import CURVES, MEASURED
from dit_compress_plugins.prune_trilevel.evidence import evidence
from dit_compress_plugins.prune_trilevel.widths import allocate_width, check_budget, the_width, with_width

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import Spec
    from dit_compress.step.workplace import Workplace
    from dit_compress.structure.facts import Axis, Granularity, Kept
    from dit_compress_plugins.prune_trilevel import Budget, TrilevelOptions


@dataclass(frozen=True)
class Counts:
    """The numbers that are settled before a search.

    axes: all that may be cut. keep: axis name → how many stay. num_parts: into how many parts a learned search
    may cut an axis of a level. blocks: blocks settled already, where every block has widths of its own.
    files: name → JSON data that belongs beside the result. left_alone: levels of a default budget that found nothing.
    curves: by which sensitivity a budget was shared out. estimated: it will be, by what is measured when the step runs.
    each: every block has widths of its own. trials: the plans that were tried, as JSON data.
    """

    axes: tuple[Axis, ...]
    keep: Mapping[str, int]
    num_parts: Mapping[str, int]
    blocks: Kept = field(default_factory=dict)
    price: Price | None = None
    files: Mapping[str, Any] = field(default_factory=dict)
    left_alone: tuple[str, ...] = ()
    curves: str = ""
    estimated: bool = False
    each: bool = False
    trials: Mapping[str, Any] = field(default_factory=dict)

    def kept(self, units: Kept) -> Kept:
        """Join a search's units with the blocks that were settled before."""
        return {**units, **self.blocks}

    def first(self) -> Kept:
        """Keep the first units of every axis: a plan of the right shape."""
        return self.kept({name: tuple(range(keep)) for name, keep in self.keep.items()})


def settle(options: TrilevelOptions, denoiser: Denoiser, spec: Spec, place: Workplace | None) -> Counts:
    """Settle the counts for a denoiser (with weights where there is a place to work at, else on the meta device)."""
    if options.search.plugin.data:
        need_any_timestep(denoiser.module, f"the search {options.search.name!r}")
    levels = granularities(options)
    by_level, left_alone = found_axes(levels, denoiser, spare=_default_levels(options))
    axes = tuple(axis for found in by_level.values() for axis in found)
    num_parts = {kind_of(name): level.num_parts for name, level in levels.items() if level.num_parts}
    if options.budget is None:
        keep = {axis.name: _explicit(levels[name], axis) for name, found in by_level.items() for axis in found}
        return Counts(axes, keep, num_parts)
    # A budget's widths are no multiple of anything: fewer parts where they must be.
    num_parts = {level: _dividing(parts, axes, level) for level, parts in num_parts.items()}
    return _within(options.budget, denoiser, spec, place, levels, Counts(axes, {}, num_parts, left_alone=left_alone))


def _dividing(parts: int, axes: Sequence[Axis], level: str) -> int:
    """Return the most equal parts, so many or fewer, that every axis of a level can be cut into."""
    units = math.gcd(*(axis.units for axis in axes if axis.level == level))
    return max(number for number in range(1, parts + 1) if units % number == 0)


def granularities(options: TrilevelOptions) -> dict[str, Granularity]:
    """Return the levels that may be cut; raise a UserError where a budget names one that is not installed."""
    if options.levels is not None:
        return {name: part.build() for name, part in options.levels.items()}
    assert options.budget is not None
    return named_levels(options.budget.levels, lambda name: f"'budget' names the level {name!r}")


def _default_levels(options: TrilevelOptions) -> bool:
    return options.budget is not None and "levels" not in options.budget.model_fields_set


def check_met(counts: Counts, budget: Budget | None, kept: Kept) -> None:
    """Raise a UserError where blocks of different size went than the counts were settled for."""
    if budget is None or counts.price is None:
        return
    price, wanted = counts.price.of(counts.axes, kept), amount(budget, counts.price.of(counts.axes, {}))
    # What was tried may be a coarse family's, and lie further below.
    least = 0.0 if budget.trials is not None else SLACK * wanted
    if not least <= price <= wanted * (1 + 1e-9):
        raise UserError(
            f"the units that the search chose weigh {show(price, counts.price.unit)}, "
            f"the budget is {show(wanted, counts.price.unit)}: this model's blocks differ in size",
            mend="Set 'heterogeneous: true', which settles the blocks with the widths, or give 'levels'",
        )


def amount(budget: Budget, whole: float) -> float:
    """Return the budget's number, whatever its unit; of a percentage, that share of the whole model's figure."""
    given: Any = budget.latency.seconds if budget.latency is not None else budget.params or budget.flops
    if isinstance(given, str):
        share = float(given.removesuffix("%")) / 100 * whole
        return share if budget.latency is not None else float(int(share))
    return float(given)


# ------------------------------------------------------------------ a budget


def _within(
    budget: Budget,
    denoiser: Denoiser,
    spec: Spec,
    place: Workplace | None,
    levels: Mapping[str, Granularity],
    counts: Counts,
) -> Counts:
    axes = counts.axes
    width = the_width(axes)
    if width is not None:
        check_budget(budget)
    # Beside a width, the other units have a price at each: here the whole model's.
    priced = [axis for axis in axes if axis is not width]
    price, table = _price(budget, denoiser, spec, place, priced)
    word = curves_for(budget, spec, denoiser)
    looks = word in MEASURED or budget.trials is not None
    if looks:
        need_any_timestep(denoiser.module, "'trials'" if budget.trials else f"'curves: {word}'")
    steps = {kind_of(name): level.multiple_of for name, level in levels.items()}
    curves = _stated(word, price, priced)
    if width is not None and word in ("default", *MEASURED):
        curves = with_width(curves, width.level)
    question = Question(axes, steps, price, curves, amount(budget, price.of(priced, {})))

    def settled(question: Question, counts: Counts, scores: Callable[[Axis], Sequence[float]]) -> Counts:
        if width is None:
            return _settled(budget, question, counts, scores)
        keep, at_width = allocate_width(question, denoiser, lambda cut, rest: _price(budget, cut, spec, None, rest)[0])
        blocks = settled_blocks(replace(question, price=at_width), keep, scores)
        return replace(counts, keep=keep, blocks=blocks, price=at_width)

    files = {} if table is None else {"latency": table}
    counts = replace(counts, price=price, files=files, curves=word, estimated=looks and place is None)
    if place is None or not looks:
        return settled(question, counts, _scores(denoiser, place))
    return _measured(budget, question, counts, denoiser, place, settled)


def _measured(
    budget: Budget,
    question: Question,
    counts: Counts,
    denoiser: Denoiser,
    place: Workplace,
    settle_by: Callable[[Question, Counts, Callable[[Axis], Sequence[float]]], Counts],
) -> Counts:
    """Settle the counts by what data say: measured curves, and trials where they are asked for."""
    if not isinstance(place, Context):
        asked = "trials" if budget.trials else f"curves: {counts.curves}"
        raise UserError(
            f"'{asked}' looks at data, and a call without a recipe has none", mend="Give a report of curves"
        )
    files = dict(counts.files)
    with evidence(budget, denoiser, counts.axes, place) as found:
        if counts.curves in MEASURED:
            files["sensitivity"] = found.curves(counts.curves)
            question = replace(question, curves=curves_from_report(files["sensitivity"]))
        counts = replace(counts, files=files)

        def scores(axis: Axis) -> Sequence[float]:
            return found.scores[axis.name].tolist()

        settled = settle_by(question, counts, scores)
        if budget.trials is None:
            return settled
        if settled.each:
            place.say("no equal widths come within 1% of the budget: each block has its own, and no plans are tried")
            return settled
        keep, tried = found.trials(question, budget.trials.steps, budget.trials.plans)
        blocks = settled_blocks(question, keep, scores)
        return replace(counts, keep=keep, blocks=blocks, trials=tried)


def _settled(budget: Budget, question: Question, counts: Counts, scores: Callable[[Axis], Sequence[float]]) -> Counts:
    """Allocate by the question's curves: equal widths, or widths of each block where they are asked for or needed.

    Where plans are tried, those of levels too coarse to come within 1% count at their nearest below.
    """
    axes = counts.axes
    if not budget.heterogeneous or counts.estimated:
        try:
            keep = allocate(question)
        except UserError:
            if budget.trials is not None and (nearest := enter(question, 1)[0]):
                keep = dict(nearest[0].keep)
                return replace(counts, keep=keep, blocks=settled_blocks(question, keep, scores))
            if not uneven(question) and not budget.heterogeneous:
                raise
            question = replace(question, curves=default_curves(question.price, axes, each=True))
        else:
            return replace(counts, keep=keep, blocks=settled_blocks(question, keep, scores))
    plan = allocate_each(question)
    blocks = {axis.name: plan[axis.name] for axis in axes if axis.blocks}
    keep = {axis.name: len(plan.get(axis.name, range(axis.units))) for axis in axes}
    return replace(counts, keep=keep, blocks=blocks, each=True)


def _scores(denoiser: Denoiser, place: Workplace | None) -> Callable[[Axis], Sequence[float]]:
    """Return the magnitudes of blocks; all alike without weights."""
    return lambda axis: [0.0] * axis.units if place is None else magnitude(denoiser.module, axis).tolist()


def _price(
    budget: Budget, denoiser: Denoiser, spec: Spec, place: Workplace | None, axes: Sequence[Axis]
) -> tuple[Price, dict[str, Any] | None]:
    """Return the price in the budget's unit; and the latency table, where one was measured."""
    if budget.params is not None:
        return parameter_price(denoiser.module, axes), None
    size = budget.size or _size_of(spec)
    if any(cells % step for cells, step in zip(size, denoiser.patch, strict=True)):
        raise UserError(
            f"latent {list(size)} can't be divided by the patch {denoiser.patch}", mend="Give another 'size'"
        )
    empty = meta_copy(denoiser)
    if budget.latency is None:
        return flops_price(empty, axes, size), None
    if budget.latency.table is not None:
        return read_table(Path(budget.latency.table), axes, size, budget.latency.machine), None
    table = measured_table(empty, axes, size)
    if place is not None:
        table = place.world.agree(table)
    return Price.from_data(table), table


def _size_of(spec: Spec) -> tuple[int, int, int]:
    """Return the latent cells of the video; raise a UserError where nothing gives them."""
    if spec.latent is None:
        raise UserError(
            "a budget of FLOPs or seconds is for one size of the latent, and no VAE tells it",
            mend="Give 'size', its cells (T, H, W), or put a 'latent' step before this one",
        )
    return spec.latent_size()


def curves_for(budget: Budget, spec: Spec, denoiser: Denoiser) -> str:
    """Return by which sensitivity a budget is shared out: the one it names, else measured where that is possible."""
    if budget.curves is not None:
        return budget.curves
    data = spec.data and spec.latent is not None and spec.text is not None
    if data and timetable_of(denoiser.module) is None:
        return "measured"
    return "each" if budget.heterogeneous else "default"


def _stated(word: str, price: Price, axes: Sequence[Axis]) -> Curves:
    """Return the curves of a report, else those of the formula, which stand in for curves that are measured later."""
    if word in CURVES:
        return default_curves(price, axes, each=word == "each")
    if not Path(word).exists() and (meant := closest(word, CURVES)):
        raise UserError(f"'curves' is {word!r}, which is no file", mend=f"Did you mean {meant!r}?")
    return curves_from_report(read_json(Path(word)), word)


def _explicit(level: Granularity, axis: Axis) -> int:
    keep = level.keep(axis)
    if keep is None:
        raise UserError(f"level {axis.level!r} has neither 'remove' nor 'keep'", mend="Give a count, or use 'budget'")
    if not 1 <= keep <= axis.units:
        raise UserError(f"{axis.name} has {axis.units} units and would keep {keep}", mend=f"Keep 1 to {axis.units}")
    return keep
