"""The report's pictures: training curves, mask probabilities over the search, which units went."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.plugin.registry import installed
from dit_compress.report.svg import ACCENT, GONE, HEAT, INK, MUTED, PAPER, RULE, WARM, as_svg, drawing, headline, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap

    from dit_compress.report.data import AxisLayout, Pruning, Series

NUM_BINS = 160
"""Points of a drawn curve; a bin's spread is drawn as a band."""
SMOOTHING = 0.9
LOG_ABOVE = 30.0
"""A curve that spans more than this factor is drawn on a logarithmic axis."""
_NAMES = {"attn1": "self-attention", "attn2": "cross-attention", "ff": "feed-forward", "ffn": "feed-forward"}
_DECIDED = (0.1, 0.9)
MAX_NAMED = 64
"""Units of one axis that a reader can still count: heads are, channels are not."""
SMALL = 12
"""Up to so many blocks there is room for tall rows."""
MAX_ROWS = 256
"""Rows of one picture that the eye still parts."""


# ------------------------------------------------------------------ training curves


def curve(series: Series, name: str) -> Markup:
    """Draw one logged quantity: the spread of its values as a band, their moving average as a line."""
    steps, low, high, smooth = binned(np.asarray(series.steps), np.asarray(series.values))
    with drawing(198, 118) as figure:
        axes = place(figure, 34, 20, 158, 76)
        axes.fill_between(steps, low, high, color=ACCENT, alpha=0.2, linewidth=0)
        axes.plot(steps, smooth, color=ACCENT)
        if len(smooth):
            axes.plot(steps[-1], smooth[-1], "o", color=ACCENT, markersize=3)
            if low.min() > 0 and smooth.max() / smooth.min() > LOG_ABOVE:
                axes.set_yscale("log")
        headline(figure, series.name.replace("_", " "), f"{smooth[-1]:.3g}" if len(smooth) else "")
        _calm(axes)
        return as_svg(figure, name, f"{series.name} over {series.steps[-1] + 1} steps")


def binned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reduce to ``NUM_BINS`` points: last step, lowest and highest value of each bin, and the smoothed value there.

    The smoothed value is an exponential moving average over all values, corrected for its start.
    """
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    total, weight, smooth = 0.0, 0.0, np.empty(len(values))
    decay = min(SMOOTHING ** (200 / max(200, len(values))), 0.99)
    for index, value in enumerate(values):
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        smooth[index] = total / weight
    bins = np.array_split(np.arange(len(values)), min(NUM_BINS, max(1, len(values))))
    bins = [part for part in bins if len(part)]
    last = [part[-1] for part in bins]
    low, high = (np.array([pick(values[part]) for part in bins]) for pick in (np.min, np.max))
    return steps[last], low, high, smooth[last]


def _calm(axes: Axes) -> None:
    """Draw few ticks and hair lines."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(4))
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.02, y=0.08)


# ------------------------------------------------------------------ mask probabilities


def families(pruning: Pruning) -> dict[str, list[AxisLayout]]:
    """Group axes that belong in one picture, by title: ``blocks``, ``heads, self-attention`` and so on."""
    titles = {entry.plugin.name: entry.plugin.units for entry in installed().entries("granularity")}
    found: dict[str, list[AxisLayout]] = {}
    for axis in pruning.axes:
        kind = "" if axis.block is None else f", {_NAMES.get(axis.leaf, axis.leaf)}"
        found.setdefault(f"{titles.get(axis.level) or axis.level}{kind}", []).append(axis)
    return {title: sorted(axes, key=lambda axis: axis.block or 0) for title, axes in found.items()}


def search_pictures(pruning: Pruning, name: str) -> list[Markup]:
    """Draw how decided the masks are over the search, then probabilities for each family of axes."""
    searched = {}
    for title, axes in families(pruning).items():
        if members := [axis for axis in axes if axis.name in pruning.chosen]:
            searched[title] = members
    if not pruning.snapshots or not searched:
        return []
    pictures = [decided(pruning, searched, f"{name}-decided")]
    return pictures + [
        probabilities(pruning, title, axes, f"{name}-p{index}") for index, (title, axes) in enumerate(searched.items())
    ]


def decided(pruning: Pruning, searched: dict[str, list[AxisLayout]], name: str) -> Markup:
    """Draw the share of parts whose probability to stay is below 0.1 or above 0.9, for each family of axes."""
    steps = [step for step, _ in pruning.snapshots]
    with drawing(282, 236) as figure:
        axes = place(figure, 30, 26, 244, 182)
        styles = ((ACCENT, "-"), (WARM, "-"), (INK, "-"), (MUTED, "--"), (ACCENT, "--"), (WARM, "--"))
        for (title, members), (colour, dash) in zip(searched.items(), styles * len(searched), strict=False):
            values = [np.concatenate([keep[axis.name] for axis in members]) for _, keep in pruning.snapshots]
            share = [float(np.mean((value < _DECIDED[0]) | (value > _DECIDED[1]))) for value in values]
            axes.plot(steps, share, color=colour, linestyle=dash, label=title)
        axes.set_ylim(-0.02, 1.02)
        headline(figure, "Decided: p below 0.1 or above 0.9")
        axes.legend(frameon=False, fontsize=7.5, loc="best", labelcolor=INK)
        axes.set_xlabel("search step", loc="right", labelpad=1)
        _calm(axes)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        return as_svg(figure, name, "Share of decided masks over the search")


def probabilities(pruning: Pruning, title: str, members: Sequence[AxisLayout], name: str) -> Markup:
    """Draw parts (rows, block by block) over the search (columns): full colour stays for sure; beside it the choice.

    Parts too many to be distinguished are sorted inside their block, the likeliest to stay first.
    """
    tables = [np.array([keep[axis.name] for _, keep in pruning.snapshots]).T for axis in members]
    choices, sizes = [np.asarray(pruning.chosen[axis.name]) for axis in members], [len(table) for table in tables]
    named = max(axis.units for axis in members) <= MAX_NAMED and sum(sizes) <= MAX_ROWS
    orders = [
        np.arange(len(rows)) if named else np.lexsort((-rows[:, -1], -choice))
        for rows, choice in zip(tables, choices, strict=True)
    ]
    table, chosen = (
        np.concatenate([rows[order] for rows, order in zip(each, orders, strict=True)]) for each in (tables, choices)
    )
    steps = [step for step, _ in pruning.snapshots]
    with drawing(282, 236) as figure:
        axes = place(figure, 30, 26, 214, 182)
        axes.imshow(
            table,
            aspect="auto",
            cmap=_fade(),
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(-0.5, len(steps) - 0.5, len(table) - 0.5, -0.5),
        )
        verdict = place(figure, 248, 26, 8, 182)
        verdict.imshow(_verdict(chosen), aspect="auto", interpolation="nearest")
        verdict.set_axis_off()
        figure.text(260 / 282, 26 / 236, "■ stays", color=HEAT, fontsize=7, rotation=90, va="bottom")
        figure.text(260 / 282, 118 / 236, "■ goes", color=GONE, fontsize=7, rotation=90, va="bottom")
        _rows(axes, members, sizes)
        marks = sorted({0, len(steps) // 2, len(steps) - 1})
        axes.set_xticks(marks, [str(steps[mark]) for mark in marks])
        axes.set_xlabel("search step", loc="right", labelpad=1)
        headline(figure, title)
        for side in axes.spines.values():
            side.set_visible(True)
        return as_svg(figure, name, f"Probability to stay over the search: {title}")


def _rows(axes: Axes, members: Sequence[AxisLayout], sizes: Sequence[int]) -> None:
    """Draw blocks as rows: lines between them, their numbers where there is room."""
    if len(members) == 1:
        every = math.ceil(sizes[0] / 14)
        axes.set_yticks(range(0, sizes[0], every), [str(unit) for unit in range(0, sizes[0], every)])
        return
    ends = np.cumsum(sizes)
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color=PAPER, linewidth=1)
    every = math.ceil(len(members) / 14)
    middles = ends - np.asarray(sizes) / 2 - 0.5
    axes.set_yticks(middles[::every], [str(axis.block) for axis in members[::every]])
    axes.set_ylabel("block", loc="top", labelpad=1)


def _fade() -> LinearSegmentedColormap:
    """Fade from nothing to the full colour, so that the paper shows through where p is 0."""
    from matplotlib.colors import LinearSegmentedColormap as Ramp

    return Ramp.from_list("fade", [(*_rgb(HEAT), 0.04), (*_rgb(HEAT), 1.0)])


def _verdict(chosen: np.ndarray) -> np.ndarray:
    """Make a column of pixels: colour where a part stays, the warm one where it goes."""
    stays, goes = np.array([*_rgb(HEAT), 1.0]), np.array([*_rgb(GONE), 1.0])
    return np.where(chosen[:, None, None].astype(bool), stays, goes)


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


# ------------------------------------------------------------------ which units went


def unit_pictures(pruning: Pruning, name: str) -> list[Markup]:
    """Draw blocks as rows in every picture: heads as squares, widths as bars, removed blocks crossed out."""
    pictures = []
    for index, (title, axes) in enumerate(families(pruning).items()):
        if axes[0].block is None and any(axis.block is not None for axis in pruning.axes):
            continue
        draw = widths if max(axis.units for axis in axes) > MAX_NAMED else units
        pictures.append(draw(pruning, title, axes, f"{name}-u{index}"))
    return pictures


def units(pruning: Pruning, title: str, members: Sequence[AxisLayout], name: str) -> Markup:
    """Draw blocks × units as squares: full where a unit stays, hollow where it went."""
    most, row = max(axis.units for axis in members), _row_height(members)
    cell = min(row, max(6.5, 230 / most))
    width, height = most * cell, len(members) * row
    with drawing(width + 42, height + 52) as figure:
        axes = place(figure, 30, 22, width, height)
        for colour, filled, wanted in ((ACCENT, True, True), (RULE, False, False)):
            spots = [
                (unit, place_)
                for place_, axis in enumerate(members)
                for unit in range(axis.units)
                if (pruning.stays(axis) and unit in pruning.kept_units(axis)) == wanted
            ]
            if spots:
                across, down = zip(*spots, strict=True)
                axes.scatter(
                    across,
                    down,
                    s=(0.72 * cell) ** 2,
                    marker="s",
                    linewidths=0.8,
                    edgecolors=colour,
                    facecolors=colour if filled else "none",
                )
        _cross_out(axes, pruning, members, (-0.5, most - 0.5))
        axes.set_xlim(-0.5, most - 0.5)
        headline(figure, title)
        _blocks(axes, members)
        axes.set_xticks(range(0, most, max(1, most // 8)))
        return as_svg(figure, name, f"Which units stay: {title}")


def widths(pruning: Pruning, title: str, members: Sequence[AxisLayout], name: str) -> Markup:
    """Draw blocks × width as bars: how much is left."""
    most, row = max(axis.units for axis in members), _row_height(members)
    height = len(members) * row
    with drawing(214, height + 52) as figure:
        axes = place(figure, 30, 22, 140, height)
        rows = range(len(members))
        kept = [len(pruning.kept_units(axis)) if pruning.stays(axis) else 0 for axis in members]
        axes.barh(rows, [axis.units for axis in members], height=0.62, facecolor="none", edgecolor=RULE, linewidth=0.8)
        axes.barh(rows, kept, height=0.62, color=ACCENT)
        for place_, count in enumerate(kept):
            if count:
                axes.text(most * 1.03, place_, f"{count:,}", va="center", color=MUTED, fontsize=7.5)
        _cross_out(axes, pruning, members, (0, most))
        axes.set_xlim(0, most)
        headline(figure, title)
        _blocks(axes, members)
        axes.set_xticks([0, most // 2, most], ["0", f"{most // 2:,}", f"{most:,}"])
        return as_svg(figure, name, f"Widths that stay: {title}")


def _row_height(members: Sequence[AxisLayout]) -> float:
    return 20.0 if len(members) <= SMALL else 12.5


def _cross_out(axes: Axes, pruning: Pruning, members: Sequence[AxisLayout], ends: tuple[float, float]) -> None:
    """Draw a cross over the whole row of every removed block."""
    for row, axis in enumerate(members):
        if not pruning.stays(axis):
            for tilt in (0.32, -0.32):
                axes.plot(ends, (row - tilt, row + tilt), color=WARM, linewidth=1.1)


def _blocks(axes: Axes, members: Sequence[AxisLayout]) -> None:
    axes.set_ylim(len(members) - 0.5, -0.5)
    if members[0].block is None:
        axes.set_yticks([])
    else:
        axes.set_yticks(range(len(members)), [str(axis.block) for axis in members])
        axes.set_ylabel("block", loc="top", labelpad=1)
    for side in axes.spines.values():
        side.set_visible(False)
