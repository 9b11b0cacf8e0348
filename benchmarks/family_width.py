"""A pruned width of the stream against pruned heads and FFN of equal size, after equal tuning.

A teacher loses channels of its stream until it is as large as with 4 of its 6 blocks, or, of that size within 1%, heads
and FFN channels, or some of all three; a narrow model of that size is trained from scratch as long.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from typing import TYPE_CHECKING, Any

import account
import torch
from paired import Table, run
from torch import nn

from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.copies import meta_copy
from dit_compress.structure.edits import compile_edits
from dit_compress.structure.facts import Axis, MaskPoint
from dit_compress.structure.masks import masked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paired import Row

LEVELS = {"heads+ffn": ["head", "ffn"], "mixed": ["width", "head", "ffn"]}
PRUNED = ("width", *LEVELS)
TABLE = Table(
    "The stream's width against heads and FFN of equal size",
    dict.fromkeys((*PRUNED, "narrow", "teacher", *(f"{name}, untuned" for name in PRUNED)), "–"),
    {"excess": 4, "explained": 4},
    (
        ("width", "narrow", "excess", -1),
        ("heads+ffn", "width", "excess", -1),
        ("mixed", "heads+ffn", "excess", -1),
    ),
    "SnapGen++, elastic widths sliced along the hidden dimension (no figure for pruning)",
    "`narrow` is trained from scratch for as many steps; `untuned` and the teacher, whole, are in no claim.",
)
STEPS = {"short": 600, "full": 3000, "tiny": 2}


def row(out: Path, tier: str, seed: int) -> Row:
    """Prune the teacher by each choice of levels, train on, measure all."""
    sizes = account.TIERS[tier]
    whole = account.metrics(account.teacher(out, sizes, seed), "teacher")
    teacher, marks = str(account.teacher_bundle(out, seed)), [STEPS[tier]]
    kept, count = narrowed(sizes)
    found: Row = {"teacher": whole}
    for name in PRUNED:
        how = {"levels": {"width": {"remove": sizes_of(sizes) - kept}}} if name == "width" else budget(name, count)
        step = {"prune": {"use": "trilevel", **how, "search": {"use": "taylor"}}, "name": "pruned", "input": teacher}
        steps = [step, account.measured("pruned", sizes), *account.trained("tuned", "pruned", marks, sizes)]
        done = run(out / f"family-width{seed}" / name.replace("+", "-"), account.recipe(sizes, 4000 + seed, steps), 1)
        found[name] = account.metrics(done, account.step_name("tuned", STEPS[tier]))
        found[f"{name}, untuned"] = account.metrics(done, "pruned")
    steps = [{"latent": {"use": "given"}, "name": "given"}, *account.trained("tuned", "given", marks, sizes)]
    recipe = account.recipe(sizes, 4000 + seed, steps, account.narrow(sizes))
    done = run(out / f"family-width{seed}" / "narrow", recipe, 1)
    return {**found, "narrow": account.metrics(done, account.step_name("tuned", STEPS[tier]))}


def budget(name: str, count: int) -> dict[str, Any]:
    """Return a budget of as many parameters, shared out by the formula: the same units for every seed's teacher."""
    return {"budget": {"params": round(1.005 * count), "levels": LEVELS[name], "curves": "default"}}


def sizes_of(sizes: Mapping[str, Any]) -> int:
    """Return the width of the teacher's stream."""
    return sizes["model"]["heads"] * sizes["model"]["head_width"]


def narrowed(sizes: Mapping[str, Any]) -> tuple[int, int]:
    """Return the most channels with which the teacher is no larger than the shallow model, and its parameters then."""
    options = {"use": "video_dit", **sizes["model"], "text_width": sizes["text"]}
    maker = make_part("model", options, installed()).build()
    denoiser = maker.denoiser(maker.create())
    (axis,) = make_part("granularity", "width", installed()).build().axes(denoiser.with_width())

    @cache
    def parameters(kept: int) -> int:
        module = meta_copy(denoiser).module
        apply_edits(module, compile_edits(module, [axis], {axis.name: tuple(range(kept))}))
        return sum(parameter.numel() for parameter in module.parameters())

    kept = bisect_right(range(1, axis.units + 1), account.target(sizes), key=parameters)
    if not kept:
        raise ValueError("no width is small enough")
    return kept, parameters(kept)


def finished(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows, and the floors: what knows less."""
    return list(rows), {"floors": account.floors(rows)}


def check() -> dict[str, Any]:
    """Return what a norm by the mean square gives for 3 and 4 of (3, 4, 9), the last one masked: over √12.5."""
    norm = nn.RMSNorm(3, eps=0.0, elementwise_affine=False)
    axis = Axis("width:x", "width", 3, "", masks=(MaskPoint("", "rms", torch.arange(3)[:, None].numpy()),))
    with masked(norm, [axis], {axis.name: torch.tensor([1.0, 1.0, 0.0])}):
        found = norm(torch.tensor([[3.0, 4.0, 9.0]]))
    return {"kept": [round(value, 5) for value in found.flatten()[:2].tolist()]}
