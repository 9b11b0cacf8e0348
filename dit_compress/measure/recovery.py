"""The loss of pruned models after equal healing, on one grid: at once, a cut looks dearer than it is in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_compress.model.cut import pruned_copy
from dit_compress.train.healing import Healing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.data.samples import Samples
    from dit_compress.measure.quality import Grid
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis, Kept
    from dit_compress.train.options import TrainOptions


@dataclass(frozen=True)
class Recovery:
    """Pruned copies of one denoiser, healed alike. rank: of LoRA; None trains all weights."""

    denoiser: Denoiser
    axes: Sequence[Axis]
    grid: Grid
    samples: Samples
    text: Captions
    options: TrainOptions
    context: Context
    rank: int | None = None

    def loss(self, kept: Kept) -> float:
        """Return the loss of a plan after ``options.steps`` steps; the whole model's for an empty one."""
        healing = self.begin(kept)
        healing.advance(self.options.steps)
        return self.grid.loss(healing.student)

    def begin(self, kept: Kept) -> Healing:
        """Prune a copy, to be healed."""
        student = pruned_copy(self.denoiser, self.axes, kept)
        return Healing(student, self.text, self.samples, self.options, self.context, self.rank)
