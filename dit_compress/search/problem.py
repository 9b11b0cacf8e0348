"""A search's problem and its answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.plugin.options import Part
    from dit_compress.step.workplace import Workplace
    from dit_compress.structure.facts import Axis, Kept


@dataclass(frozen=True)
class SearchProblem:
    """Keep exactly ``keep[axis.name]`` units of every axis.

    num_parts: per level, into how many equal parts a learned search may cut an axis (FFN channels).
    fixed: axes whose units are settled already (blocks, where a budget gave each its own widths): a search
    measures with these and leaves them.
    """

    denoiser: Denoiser
    axes: tuple[Axis, ...]
    keep: Mapping[str, int]
    num_parts: Mapping[str, int] = field(default_factory=dict)
    fixed: Kept = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """The units that stay, and what the report shows of how they were found."""

    kept: Kept
    history: dict[str, Any] = field(default_factory=dict)


def outside_removed_blocks(axes: Sequence[Axis], kept: Kept) -> list[Axis]:
    """Return the axes that still matter under a plan: those inside a removed block compute nothing."""
    gone = {
        (axis.blocks.path, index)
        for axis in axes
        if axis.blocks and axis.name in kept
        for index in set(range(axis.units)) - set(kept[axis.name])
    }
    return [axis for axis in axes if axis.blocks or (axis.stack, axis.block) not in gone]


class Search(Protocol):
    """Chooses which units stay."""

    def search(self, problem: SearchProblem, context: Workplace) -> Selection:
        """Choose the units of every axis of the problem, exactly ``problem.keep[axis]`` of each.

        context: where the search works; that of the prune step (a ``Context``) for a plugin with ``data=True``.
        """

    def check(self, problem: SearchProblem, *, settled: bool) -> None:
        """Raise a UserError where the search can't be done, before anything is paid for; no weights are there yet.

        settled: whether it will be asked for just these counts; what a budget measures first may change them.
        """
        del problem, settled


def check_search(part: Part, problem: SearchProblem, *, settled: bool) -> None:
    """Let a search say what can't be done, see :meth:`Search.check`."""
    search: Search = part.build()
    search.check(problem, settled=settled)
