"""A teacher whose self-attentions are all replaced, healed equally by kind; the time of each attention over tokens."""

from __future__ import annotations

import statistics
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import account
import numpy as np
import torch
import torch.nn.functional as F
from paired import Table, run

from dit_compress.measure.latency import interleaved
from dit_compress_plugins.transform_attention.global_local import GlobalLocal
from dit_compress_plugins.transform_attention.linconv import LinearConvolution, linear_attention
from dit_compress_plugins.transform_attention.stride import Strided
from dit_compress_plugins.transform_attention.swap import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from paired import Row

KINDS = ("linconv", "stride", "global_local")
TABLE = Table(
    "A teacher with all its self-attentions replaced, before and after equal healing",
    {
        "teacher": "loss 0.506 (SnapGen++, plain)",
        **dict.fromkeys(("linconv", "linconv unhealed", "stride", "stride unhealed"), "–"),
        "global_local": "loss 0.513 (SnapGen++, ASSA and three stages)",
        "global_local unhealed": "–",
        "chance": "–",
    },
    {"excess": 4, "explained": 4},
    (
        *((kind, f"{kind} unhealed", "excess", -1) for kind in KINDS),
        ("linconv", "stride", "excess", -1),
        ("global_local", "stride", "excess", -1),
    ),
    "S2DiT and SnapGen++",
    "Every block of the teacher has the kind's attention; `unhealed` is fitted block by block alone. 2x2 tokens.",
)
STEPS = {"short": 400, "full": 3000, "tiny": 2}
_GRIDS = ((4, 8, 8), (8, 8, 8), (4, 16, 16), (8, 16, 16), (4, 32, 32), (8, 32, 32))
GRIDS = {"short": _GRIDS, "full": _GRIDS, "tiny": ((1, 4, 4), (2, 4, 4))}
"""Tokens along T, H, W of the timed calls: 256 to 8,192."""
HEADS, WIDTH, ROUNDS = 4, 32, 3


def row(out: Path, tier: str, seed: int) -> Row:
    """Replace the attentions of a seed's teacher by each kind, heal, measure all; and time one layer of each."""
    sizes = account.TIERS[tier]
    teacher = account.metrics(account.teacher(out, sizes, seed), "teacher")
    recipe = account.recipe(sizes, 4000 + seed, steps(tier, out, seed))
    done = run(out / f"family-attention{seed}", recipe, 1)
    found: Row = {"teacher": teacher, "chance": {"excess": teacher["chance_excess"], "explained": 0.0}}
    for kind in KINDS:
        found |= {kind: account.metrics(done, f"{kind}-healed"), f"{kind} unhealed": account.metrics(done, kind)}
    for name, times in seconds(GRIDS[tier]).items():
        found["teacher" if name == "full" else name] |= times
    return found


def steps(tier: str, out: Path, seed: int) -> list[dict[str, Any]]:
    """Return the recipe's steps: each kind replaces every attention of the same teacher, and is healed by it."""
    sizes, teacher = account.TIERS[tier], str(account.teacher_bundle(out, seed))
    how = {**account.training(sizes, STEPS[tier]), "use": "affine", "kd_share": account.KD_SHARE}
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        replaced = {"use": "attention", "blocks": {"*": kind}, "fit": min(100, STEPS[tier])}
        found += [{"transform": replaced, "name": kind, "input": teacher}, account.measured(kind, sizes)]
        healed = f"{kind}-healed"
        found += [{"distill": how, "name": healed, "input": kind, "teacher": teacher}, account.measured(healed, sizes)]
    return found


@torch.no_grad()
def seconds(grids: Sequence[tuple[int, int, int]]) -> dict[str, dict[str, float]]:
    """Time one call of each attention, without the projections that all have; by kind, ``seconds <tokens>``."""
    found: dict[str, dict[str, float]] = {name: {} for name in ("full", *KINDS)}
    for grid in grids:
        for name, times in interleaved(calls(grid), ROUNDS).items():
            found[name][f"seconds {prod(grid)}"] = statistics.median(times)
    return found


def calls(grid: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    """Return the attentions over one grid of tokens."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, prod(grid), WIDTH) for _ in range(3))
    seen = Seen(grid, tokens=torch.randn(1, prod(grid), HEADS * WIDTH))
    linear, coarse = LinearConvolution(HEADS, WIDTH), GlobalLocal(HEADS, WIDTH, HEADS * WIDTH)
    linear.start()
    coarse.start()

    def linconv() -> torch.Tensor:
        seen.features.update(query=linear.feature("query", q), key=linear.feature("key", k))
        return linear(seen.features["query"], seen.features["key"], v, seen)

    return {
        "full": partial(F.scaled_dot_product_attention, q, k, v),
        "linconv": linconv,
        "stride": partial(Strided((1, 2, 2)), q, k, v, seen),
        "global_local": partial(coarse, q, k, v, seen),
    }


def finished(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows; milliseconds by tokens and kind, and the fewest tokens from which each is faster than full."""
    names = [name for name in rows[0]["teacher"] if name.startswith("seconds ")]
    tokens = [int(name.split()[1]) for name in names]
    times = {
        arm: [float(np.median([row[arm][name] for row in rows])) * 1e3 for name in names] for arm in ("teacher", *KINDS)
    }
    crossover = {kind: crossing(tokens, times[kind], times["teacher"]) for kind in KINDS}
    shown = {
        name: dict(zip(map(str, tokens), (round(ms, 3) for ms in each), strict=True)) for name, each in times.items()
    }
    return list(rows), {"ms": {"full": shown.pop("teacher"), **shown}, "crossover_tokens": crossover}


def crossing(tokens: Sequence[int], ours: Sequence[float], full: Sequence[float]) -> int | None:
    """Return the fewest tokens from which an attention is faster than the full one at every larger size, too."""
    faster = [mine < theirs for mine, theirs in zip(ours, full, strict=True)]
    return next((count for place, count in enumerate(tokens) if all(faster[place:])), None)


def check() -> dict[str, Any]:
    """Return what zero queries and keys make of the values 2 and 6, and the linear form's distance to the quadratic."""
    mixer = LinearConvolution(1, 1)
    mixer.start()
    zero = mixer.feature("query", torch.zeros(1, 1, 2, 1)).detach()
    mean = linear_attention(zero, zero, torch.tensor([2.0, 6.0]).reshape(1, 1, 2, 1), zero, zero)
    torch.manual_seed(0)
    q, k, v = (torch.rand(1, 2, 64, 16) for _ in range(3))
    quadratic = (q @ k.mT / (q @ k.mT).sum(-1, keepdim=True)) @ v
    return {
        "value": float(mean[0, 0, 0, 0]),
        "linear_is_quadratic": bool((linear_attention(q, k, v, q, k) - quadratic).abs().max() < 4e-7),
    }
