"""Figure 3 of the paper: prune each level step by step, measure FLOPs, memory, latency and quality."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.measure.latency import interleaved
from dit_compress.measure.memory import peak_bytes
from dit_compress.model.cut import compact
from dit_compress.model.figures import count_flops, count_parameters
from dit_compress.search.allocate import proportional
from dit_compress.structure.copies import shared_copy
from dit_compress.structure.masks import hard_masks, masked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dit_compress.measure.quality import Grid
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Axis, Kept

    Levels = Mapping[str, Sequence[Axis]]
    Choose = Callable[[Sequence[Axis], Mapping[str, int]], Kept]
    Loss = Callable[[Kept], float]

SHARES = (0.125, 0.25, 0.375, 0.5)
"""The shares of a level that are removed by default."""


def quality_curves(
    levels: Levels, choose: Choose, loss: Loss, quality: str, shares: Sequence[float] = SHARES, *, each: bool
) -> dict[str, Any]:
    """Measure the loss with a share of each level gone; with ``each``, of each axis and without each block, too.

    loss: of a plan, axes that it does not name whole. quality: what its figures are called.
    """
    whole = loss({})
    report: dict[str, Any] = {"quality": quality, "whole": {quality: whole}, "levels": {}}
    for level, axes in levels.items():
        rows = []
        for keep in steps_of(axes, shares):
            widest = max(axes, key=lambda axis: axis.units)
            kept = choose(axes, keep)
            removed = widest.units - keep[widest.name]
            rows.append({"removed": removed, "of": widest.units, "kept": kept, quality: loss(kept)})
        report["levels"][level] = rows
    if each:
        report["axes"], report["blocks"] = {}, {}
        for axis in (axis for axes in levels.values() for axis in axes):
            if axis.blocks:
                others = [tuple(i for i in range(axis.units) if i != gone) for gone in range(axis.units)]
                report["blocks"][axis.name] = [loss({axis.name: left}) for left in others]
                continue
            report["axes"][axis.name] = [
                {
                    "removed": axis.units - keep[axis.name],
                    "of": axis.units,
                    quality: loss(choose([axis], keep)),
                }
                for keep in steps_of([axis], shares)
            ]
    return report


def masked_loss(denoiser: Denoiser, levels: Levels, grid: Grid) -> Loss:
    """Return the loss of a plan at once: of the whole model under masks."""
    every = [axis for axes in levels.values() for axis in axes]

    def loss(kept: Kept) -> float:
        with masked(denoiser.module, every, hard_masks(every, kept, next(denoiser.parameters()))):
            return grid.loss(denoiser)

    return loss


def steps_of(axes: Sequence[Axis], shares: Sequence[float]) -> list[dict[str, int]]:
    """List counts that stay, per share removed; shares that remove nothing, or the same again, are passed over."""
    widest = max(axis.units for axis in axes)
    counts = sorted({max(1, widest - round(share * widest)) for share in shares} - {widest}, reverse=True)
    return [{axis.name: proportional(count, widest, axis.units, 1) for axis in axes} for count in counts]


def measure(
    denoiser: Denoiser, levels: Levels, report: dict[str, Any], size_THW: tuple[int, int, int], rounds: int
) -> None:
    """Add to each row of the curves what its plan costs: parameters, FLOPs, peak memory, latency.

    Latency is the whole model's, divided by how many times faster the compacted one is in paired runs. The
    plans' units leave the report.
    """
    call = caller(denoiser, size_THW)
    whole_ms = statistics.median(interleaved({"whole": call}, rounds)["whole"]) * 1e3
    report["whole"] |= costs(shared_copy(denoiser), size_THW) | {"latency_ms": whole_ms, "times_faster": 1.0}
    for level, rows in report["levels"].items():
        for row in rows:
            variant = shared_copy(denoiser)
            compact(variant, levels[level], row.pop("kept"))
            seconds = interleaved({"whole": call, "this": caller(variant, size_THW)}, rounds)
            faster = statistics.median(a / b for a, b in zip(seconds["whole"], seconds["this"], strict=True))
            row |= {"latency_ms": whole_ms / faster, "times_faster": faster, **costs(variant, size_THW)}


def caller(denoiser: Denoiser, size_THW: tuple[int, int, int]) -> Callable[[], object]:
    """Return one call of the denoiser for one sample."""
    denoiser.eval()
    example = denoiser.typical(1, size_THW)

    @torch.no_grad()
    def call() -> object:
        return denoiser(*example)

    return call


def costs(denoiser: Denoiser, size_THW: tuple[int, int, int]) -> dict[str, float]:
    """Count parameters, peak memory and FLOPs; the denoiser ends on the meta device."""
    memory = peak_bytes(denoiser, caller(denoiser, size_THW))
    params = count_parameters(denoiser.module)
    return {"params": params, "peak_memory_bytes": memory, "flops": count_flops(denoiser, size_THW)}
