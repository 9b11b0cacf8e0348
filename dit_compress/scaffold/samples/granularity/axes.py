"""Feed-forward channels in runs, so that widths stay multiples of what the hardware computes at once.

An axis is data: for each unit the slices that it owns, where a mask multiplies, and what must follow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.structure.facts import Granularity

if TYPE_CHECKING:
    import numpy as np
    from dit_compress.structure.facts import Axis, FeedForward, Structure

    from dit_compress.scaffold.samples.granularity import ExampleOptions

LEVEL = "example"


class ExampleGranularity(Granularity):
    """One axis per feed-forward: its runs of ``options.run`` channels."""

    multiple_of = 1
    num_parts = None

    def __init__(self, options: ExampleOptions) -> None:
        self.options = options

    def axes(self, structure: Structure) -> list[Axis]:
        """Change this: which facts become axes; ``structure.attentions`` and ``structure.stacks`` are the others."""
        run = self.options.run
        fitting = [found for found in structure.feed_forwards if found.count % run == 0 and found.count > run]
        return [in_runs(found, run) for found in fitting]

    def keep(self, axis: Axis) -> int | None:
        """Return how many runs stay; None where the options leave it open."""
        return None if self.options.remove is None else axis.units - self.options.remove


def in_runs(found: FeedForward, run: int) -> Axis:
    """Give the run whatever its channels own. Change this: what one unit is."""

    def joined(indices: np.ndarray) -> np.ndarray:
        """Join ``[channels, entries]`` to ``[channels / run, run * entries]``."""
        return indices.reshape(-1, run * indices.shape[1])

    one = found.axis(LEVEL)
    return replace(
        one,
        units=one.units // run,
        members=tuple(replace(member, indices=joined(member.indices)) for member in one.members),
        masks=tuple(replace(point, indices=joined(point.indices)) for point in one.masks),
        follows=tuple(replace(item, step=item.step and item.step * run) for item in one.follows),
        gathers=tuple(replace(item, indices=joined(item.indices)) for item in one.gathers),
    )
