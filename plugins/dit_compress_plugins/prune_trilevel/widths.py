"""A budget that may cut the width of the stream: other units then weigh less, so each width has a price of its own.

For each width the model is cut to it without weights, and the rest is allocated in what is left, exactly as without a
width; of all widths the plan with the least summed sensitivity is taken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.search.allocate import SLACK, allocate, counts_of, show, thinned
from dit_compress.search.curves import OTHER, Curve, Curves
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.copies import meta_copy
from dit_compress.structure.edits import compile_edits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.search.allocate import Question
    from dit_compress.search.budget import Price
    from dit_compress.structure.facts import Axis
    from dit_compress_plugins.prune_trilevel import Budget

    # The price of some axes of a model.
    Pricing = Callable[[Denoiser, Sequence[Axis]], Price]


def the_width(axes: Sequence[Axis]) -> Axis | None:
    """Return the axis that stands in no block, if there is one."""
    return next((axis for axis in axes if axis.everywhere), None)


def check_budget(budget: Budget) -> None:
    """Raise a UserError where a budget asks for what can't be had together with a width."""
    asked = {"heterogeneous": budget.heterogeneous, "trials": budget.trials, "latency": budget.latency}
    given = next((name for name, value in asked.items() if value), None)
    if given is not None:
        raise UserError(
            f"'{given}' goes with blocks, heads and channels of feed-forwards; the width changes what all of them cost",
            where="budget",
            mend="Cut the width by 'params' or 'flops', in equal widths, and the rest by a prune step of its own",
        )


def width_curve() -> Curve:
    """Make the curve of a width where none was measured: all of the model's weights are in it."""
    shares = [place / 64 for place in range(65)]
    return Curve(tuple((share, share**2 / OTHER) for share in shares))


def with_width(curves: Curves, level: str) -> Curves:
    """Return curves that have one of the width."""
    if level in curves.levels:
        return curves
    return replace(curves, levels={**curves.levels, level: width_curve()})


def allocate_width(question: Question, denoiser: Denoiser, pricing: Pricing) -> tuple[dict[str, int], Price]:
    """Return the counts of all axes, the width's included, and the price at that width.

    question: of all axes, with the price of the whole model's other axes. UserError names the nearest that can be met.
    """
    width = the_width(question.axes)
    assert width is not None
    rest = [axis for axis in question.axes if axis is not width]
    best: tuple[float, dict[str, int], Price] | None = None
    reached: list[float] = []
    for count, priced in _prices(question, width, rest, denoiser, pricing):
        loss = question.curves.level(width.level)(1 - count / width.units)
        keep = _rest(replace(question, axes=rest, price=priced), reached)
        if keep is None:
            continue
        loss += sum(question.curves.level(axis.level)(1 - keep[axis.name] / axis.units) for axis in _widest(rest))
        if best is None or loss < best[0]:
            best = loss, {**keep, width.name: count}, _joined(priced, question.price, width, count, rest)
    if best is None:
        nearest = min(reached, key=lambda price: abs(price - question.budget), default=None)
        raise UserError(
            f"no width comes within 1% of {show(question.budget, question.price.unit)} from below",
            mend="Give another budget" if nearest is None else f"The nearest that can be met is {show(nearest, '')}",
        )
    return best[1], best[2]


def _prices(
    question: Question, width: Axis, rest: Sequence[Axis], denoiser: Denoiser, pricing: Pricing
) -> Iterator[tuple[int, Price]]:
    """Yield widths, and what the other axes cost where so many channels stay; those that can't fit are left out."""
    counts = counts_of(width.units, question.steps.get(width.level, 1))
    for count in thinned(counts):
        empty = meta_copy(denoiser)
        apply_edits(empty.module, compile_edits(empty.module, [width], {width.name: tuple(range(count))}))
        yield count, pricing(empty, rest)


def _rest(question: Question, reached: list[float]) -> dict[str, int] | None:
    """Allocate what a width leaves; None where nothing fits. reached: what could be met instead."""
    if not question.axes:
        reached.append(question.price.fixed)
        return {} if question.fits(question.price.fixed) else None
    whole = question.price.of(question.axes, {})
    if whole < SLACK * question.budget:
        reached.append(whole)
        return None
    try:
        return allocate(question)
    except UserError:
        return None


def _widest(axes: Sequence[Axis]) -> list[Axis]:
    """Return the widest axis of each level, by which its curve is read."""
    return list({axis.level: axis for axis in sorted(axes, key=lambda axis: axis.units)}.values())


def _joined(price: Price, whole: Price, width: Axis, count: int, rest: Sequence[Axis]) -> Price:
    """Return a price that is right at the chosen width, and for the whole model."""
    gone = width.units - count
    unit = (whole.of(rest, {}) - price.of(rest, {})) / gone if gone else 0.0
    return replace(price, fixed=price.fixed - unit * count, units={**price.units, width.name: unit})
