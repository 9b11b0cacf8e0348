"""Which GPUs hold a step that trains a denoiser: an estimate from shapes (docs/scale.md, "Memory per GPU")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_compress.model.figures import BYTES_FP32
from dit_compress.run.costs import size, state_bytes
from dit_compress.train.options import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.run.plan import Planned

GPUS_GB = (24, 48, 80)
FREE = 0.9
"""Of a GPU: the rest is left to its context, and to what lies between tensors."""
KEPT, HIDDEN = 34, 4
"""Bytes that a block keeps for its backward pass in bfloat16: of each token and channel of the stream, and of each
token and channel of its FFN. An FFN four times as wide as the stream makes it 50."""


@dataclass(frozen=True)
class Fit:
    """Bytes that one GPU holds. state: weights, gradients, moments, averages, teacher.

    sample: activations of one; samples: alive at once.
    """

    state: float
    sample: float
    samples: float

    def described(self) -> str:
        """Say it in one line."""
        total = self.state + self.samples * self.sample
        fits = ", ".join(f"{gpu} GB {'yes' if total <= FREE * gpu * 2**30 else 'no'}" for gpu in GPUS_GB)
        parts = f"weights and optimiser {size(self.state)}, activations {self.samples:g} x {size(self.sample)}"
        return f"fits: {fits} (about {size(total)} a GPU: {parts})"


def fits(rows: Sequence[Planned], processes: int = 1) -> dict[str, Fit]:
    """Return what each step holds that trains a denoiser, by name; latents of unknown size are not counted."""
    figures = {row.node.name: row.after for row in rows}
    return {row.node.name: _fit(row, figures, processes) for row in rows if row.node.kind == "distill" and row.width}


def _fit(row: Planned, figures: Mapping[str, Mapping[str, int]], processes: int) -> Fit:
    """Count one step's; networks that it makes beside the student, as a judge, as if in one graph with it."""
    options, own = row.node.part.options, row.after
    assert isinstance(options, TrainOptions)
    together = processes if row.node.part.plugin.world == "all" else 1
    state = state_bytes(row, figures) / options.sharing(together) + BYTES_FP32 * own.get("text_params", 0)
    if together > 1:  # FSDP gathers the block at work, and the next
        state += 2 * BYTES_FP32 * own["params"] / row.blocks
    samples = options.batch / (options.accumulate * together)
    networks = max(row.calls, row.held / own["params"])
    return Fit(state, networks * activation_bytes(row, options), samples)


def activation_bytes(row: Planned, options: TrainOptions) -> float:
    """Return what one sample leaves in the student for the backward pass."""
    tokens, width, ffn = row.after.get("tokens", 0), row.width, row.after["ffn"]
    wide = 1 if options.bf16 else 2
    if options.checkpoint_activations:  # blocks' inputs in float32, and all of the largest block
        return tokens * (BYTES_FP32 * width * row.blocks + wide * (KEPT * width + HIDDEN * max(ffn, default=0)))
    return wide * tokens * (KEPT * width * row.blocks + HIDDEN * sum(ffn))
