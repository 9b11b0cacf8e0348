"""What a run takes of a machine, at least: clips, disk, memory, time. What a step does not say is not counted."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dit_compress.core.errors import UserError
from dit_compress.model.figures import BYTES_BF16, BYTES_FP32
from dit_compress.plugin.options import VideoOptions
from dit_compress.train.options import DistillOptions, FrozenDtype, TrainOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.recipe.model import Recipe
    from dit_compress.run.plan import Planned

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MOMENTS = 2
_KEPT: dict[FrozenDtype, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
"""Bytes of a frozen weight."""
_PASSES = 3
"""A training step computes forward once and backward twice as much."""


@dataclass(frozen=True)
class Cost:
    """Of one step: bytes that it writes, bytes that one process holds, and floating-point operations."""

    disk: float = 0
    memory: float = 0
    flops: float = 0


def clips_of(recipe: Recipe) -> int | None:
    """How many clips the data will have, where its options say it."""
    options = recipe.data.options if recipe.data else None
    return options.expected_clips if isinstance(options, VideoOptions) else None


def costs(rows: Sequence[Planned], recipe: Recipe, processes: int = 1) -> dict[str, Cost]:
    """Return what each step takes, by name."""
    figures = {row.node.name: row.after for row in rows}
    return {row.node.name: _cost(row, figures, recipe, processes) for row in rows}


def _cost(row: Planned, figures: Mapping[str, Mapping[str, int]], recipe: Recipe, processes: int) -> Cost:
    node, own = row.node, row.after
    options = node.part.options if "step" in node.parts else None
    params, codec, text = (own.get(name, 0) for name in ("params", "latent_params", "text_params"))
    written = {"base": params + text, "latent": codec, "evaluate": 0, "export": 0}.get(node.kind, params)
    if not isinstance(options, TrainOptions) or node.kind not in ("latent", "distill"):
        return Cost(BYTES_FP32 * written, BYTES_FP32 * written)
    trained = codec if node.kind == "latent" else row.trained
    saved = options.keep_checkpoints if options.steps >= options.checkpoint_every else 0
    checkpoints = BYTES_FP32 * trained * saved * (1 + _MOMENTS + (options.ema > 0))
    part = options.batch / (options.accumulate * processes)
    smallest, video = (choose((prod((3, *each)) for each in recipe.videos), default=0) for choose in (min, max))
    cached, activations, flops = 0, 0.0, 0.0
    if node.kind == "latent":
        cached, activations = (clips_of(recipe) or 0) * smallest, BYTES_FP32 * video
    else:
        widest = max(0.0, own.get("memory_bytes", 0) / BYTES_BF16 - params) / 4  # of one block, see ``describe``
        blocks = 1 if options.checkpoint_activations else own.get("blocks", 1)
        activations = (BYTES_BF16 if options.bf16 else BYTES_FP32) * widest * blocks
        flops = _PASSES * own.get("flops", 0) * options.batch * options.steps
    disk = BYTES_FP32 * written + checkpoints + (0 if _streams(recipe) else cached)
    return Cost(disk, state_bytes(row, figures) / options.sharing(processes) + part * activations, flops)


def state_bytes(row: Planned, figures: Mapping[str, Mapping[str, int]]) -> int:
    """Count what a training step holds besides activations.

    All weights, those of a teacher too, and of what is trained gradients, moments and average; in float32, but for
    frozen ones that the options keep in fewer bytes.
    """
    node, options = row.node, cast("TrainOptions", row.node.part.options)
    codec = row.after.get("latent_params", 0)
    held, trained = (codec, codec) if node.kind == "latent" else (row.held, row.trained)
    others = sum(
        (_KEPT[options.teacher_dtype] if slot == "teacher" and isinstance(options, DistillOptions) else BYTES_FP32)
        * figures.get(source, {}).get("params", 0)
        for slot, source in node.inputs.items()
        if slot != "input"
    )
    lora = options.lora if isinstance(options, DistillOptions) else None
    frozen = _KEPT[lora.base if lora else "float32"] * (held - trained)
    return frozen + BYTES_FP32 * (2 + _MOMENTS + (options.ema > 0)) * trained + others


def _streams(recipe: Recipe) -> bool:
    """Whether clips are decoded as they are needed, and not kept decoded."""
    return recipe.data is not None and bool(recipe.data.build().workers)


def described(recipe: Recipe, found: Mapping[str, Cost], processes: int = 1) -> str:
    """Return the whole run in one line."""
    clips, flops = clips_of(recipe), sum(cost.flops for cost in found.values())
    words = [f"{clips:,} clips"] if clips else []
    words += [
        f"{size(sum(cost.disk for cost in found.values()))} on disk",
        f"{size(max(cost.memory for cost in found.values()))} of memory",
    ]
    return f"at least {', '.join(words)}" + (
        f", {_duration(flops / _speed() / processes)} of training" if flops else ""
    )


def need_room(recipe: Recipe, found: Mapping[str, Cost], folder: Path, places: Mapping[str, str]) -> None:
    """UserError where this machine's memory can't hold a step, or the disk of the run's folder all of them.

    found: what is still to be run. places: file and line of each step.
    """
    errors, there = [], memory_bytes()
    for name, cost in found.items():
        if cost.memory > there:
            what = f"step {name!r} needs at least {size(cost.memory)} of memory, this machine has {size(there)}"
            mend = "Lower 'batch', raise 'accumulate', take a larger machine, or give --yes to try it all the same"
            errors.append(UserError(what, where=places[name], mend=mend))
    needed = sum(cost.disk for cost in found.values()) - _written(folder, found)
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    if needed > free:
        what = f"the run needs at least {size(needed)} on the disk, {size(free)} are free"
        clips = f" (of {clips_of(recipe):,} clips)" if clips_of(recipe) else ""
        mend = "Free some space, name another folder with --out, or give --yes to try it all the same"
        errors.append(UserError(f"{what}{clips}", where=str(folder), mend=mend))
    if errors:
        raise UserError.join(errors)


def _written(folder: Path, found: Mapping[str, Cost]) -> int:
    """Bytes of caches, and of the steps that were begun."""
    roots = [folder / "cache", *(folder / "steps" / f"{name}.partial" for name in found)]
    return sum(item.stat().st_size for root in roots for item in root.rglob("*") if item.is_file())


def memory_bytes() -> float:
    """Memory that one process may have here: the machine's, or a container's; a GPU's where that is more."""
    import torch

    have = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = _CGROUP.read_text("utf-8").strip() if _CGROUP.is_file() else "max"
    have = min(have, float(limit)) if limit.isdigit() else have
    return max(have, float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0.0)


def _speed() -> float:
    """Floating-point operations a second of a product of matrices here: training reaches a share of it."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = torch.rand(1024, 1024, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        float((side @ side)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def size(size_bytes: float) -> str:
    """Bytes as a person reads them."""
    return f"{size_bytes / 2**30:,.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"
