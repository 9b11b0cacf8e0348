"""The report's pictures of layouts: the kind of every block, and the front of loss against price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_compress.core.files import read_json
from dit_compress.report.svg import ACCENT, HEAT, INK, MUTED, PAPER, RULE, WARM, as_svg, drawing, headline, place

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from markupsafe import Markup

CELL, ACROSS = 16, 24
"""Points of a block, and blocks in a row."""
UNITS = {"params": "Parameters", "flops": "FLOPs", "seconds": "Seconds", "memory": "Memory, bytes"}
FILLS = ("none", ACCENT, WARM, HEAT, MUTED)
"""By kind, the first being the block as it was; further ones begin anew."""


@dataclass(frozen=True)
class Layout:
    """The kind of each block, by path; a letter for each kind; what it costs by the sum of blocks, and on the whole.

    unchanged: what the model cost as it was, by the sum of blocks. present: its loss after the same short training.
    front: layouts that none beats in loss and price at once.
    """

    kinds: Mapping[str, str]
    letters: Mapping[str, str]
    budget: Mapping[str, float]
    predicted: Mapping[str, float | None]
    measured: Mapping[str, float | None]
    unchanged: Mapping[str, float | None]
    present: float | None
    expected: float | None
    loss: float | None
    front: tuple[Mapping[str, Any], ...]

    @property
    def units(self) -> Mapping[str, str]:
        """What each quantity is called in a table."""
        return UNITS

    @property
    def against(self) -> str:
        """The price that the front is drawn against."""
        return next(iter(self.budget), "flops")


def read_layout(folder: Path) -> Layout | None:
    """Read ``layout.json`` of a step that chose one."""
    path = folder / "layout.json"
    if not path.is_file():
        return None
    data = read_json(path)
    kept = {name: data.get(name) for name in ("expected", "loss", "present")}
    named = {name: data[name] for name in ("letters", "budget", "predicted", "measured")}
    kept["unchanged"] = data.get("unchanged") or {}
    return Layout(data["layout"], **named, **kept, front=tuple(data.get("front", ())))


def layout_pictures(layout: Layout, name: str) -> list[Markup]:
    """Draw the blocks, and the front where there is one."""
    return [blocks(layout, f"{name}-l0"), *([front(layout, f"{name}-l1")] if len(layout.front) > 1 else [])]


def blocks(layout: Layout, name: str) -> Markup:
    """Draw one cell a block, in order, with the letter of its kind."""
    kinds = list(layout.kinds.values())
    rows, across = -(-len(kinds) // ACROSS), min(len(kinds), ACROSS)
    fills = {kind: FILLS[place_ % len(FILLS)] for place_, kind in enumerate(layout.letters)}
    used = [kind for kind in layout.letters if kind in kinds]
    width, height = max(across * CELL, 220), rows * CELL
    with drawing(width + 12, height + 48) as figure:
        axes = place(figure, 4, 24, across * CELL, height)
        for index, kind in enumerate(kinds):
            x, y, fill = index % ACROSS, index // ACROSS, fills[kind]
            axes.bar(x, 0.86, 0.86, y - 0.43, color=fill, edgecolor=RULE, linewidth=0.8)
            colour = INK if fill == "none" else PAPER
            axes.text(x, y, layout.letters[kind], ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xlim(-0.5, across - 0.5)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_axis_off()
        figure.text(4 / (width + 12), 6 / (height + 48), ", ".join(f"{layout.letters[kind]} {kind}" for kind in used),
                    fontsize=7.5, color=MUTED)  # fmt: skip
        headline(figure, "Kinds of the blocks", f"{len(kinds)} blocks")
        return as_svg(figure, name, "Layout: " + "".join(layout.letters[kind] for kind in kinds))


def front(layout: Layout, name: str) -> Markup:
    """Draw loss against price; the one that was chosen is full."""
    chosen = "".join(layout.letters[kind] for kind in layout.kinds.values())
    with drawing(282, 190) as figure:
        axes = place(figure, 48, 32, 224, 128)
        for point in layout.front:
            fill = ACCENT if point["row"] == chosen else "none"
            axes.plot(point[layout.against], point["loss"], "o", markersize=4.5, markerfacecolor=fill,
                      markeredgecolor=ACCENT, markeredgewidth=0.9)  # fmt: skip
        if limit := layout.budget.get(layout.against):
            axes.axvline(limit, color=RULE, linewidth=0.8, linestyle="--")
        axes.set_xlabel(layout.against, loc="right", labelpad=1)
        axes.set_ylabel("loss", loc="top", labelpad=1)
        headline(figure, "Layouts that none beats", f"{len(layout.front)}")
        return as_svg(figure, name, f"Loss against {layout.against} of {len(layout.front)} layouts")
