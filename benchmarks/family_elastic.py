"""Three nested widths trained as one model, against three separate trainings of the widths cut out beforehand.

A teacher gets widths of heads and FFN channels in the order of Taylor's importance. ``elastic`` trains all of them in
one training, one narrower width at each step beside the whole model. Each ``alone`` begins with the same units and
weights, and is given as many samples by flow matching as the elastic training gives that width: all of them for the
whole model, half for each of the two others. ``cut`` is what both begin with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import account
import numpy as np
import torch
from paired import Table, run

from dit_compress.core.files import read_json
from dit_compress.model.cut import compact, example_output, masked_output
from dit_compress.structure.compact import TOLERANCE, relative_error
from dit_compress.testing.models import tiny_denoiser
from dit_compress_plugins.distill_elastic.distiller import over_networks
from dit_compress_plugins.prune_nested import NestedOptions
from dit_compress_plugins.prune_nested.step import Widths

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paired import Row

WIDTHS = ("0.375", "0.5", "1")
NARROW = WIDTHS[:-1]
MARGIN = 1.01
"""The elastic model's excess over that of a separate training, at most."""
ELASTIC, ALONE, CUT = ({width: f"{word} {width}" for width in WIDTHS} for word in ("elastic", "alone", "cut"))
TABLE = Table(
    "Three widths in one training, and three trainings",
    {
        **{ELASTIC[width]: "–" for width in NARROW},
        ELASTIC["1"]: "0.4B: loss 0.5093",
        **{ALONE[width]: "–" for width in NARROW},
        ALONE["1"]: "0.4B: loss 0.5090",
        **{CUT[width]: "–" for width in NARROW},
        "teacher": "–",
    },
    {"excess": 4, "within": 4, "explained": 4},
    tuple((ELASTIC[width], ALONE[width], "within", -1) for width in WIDTHS),
    "SnapGen++, text to image",
    f"`within` is the excess, that of `alone` times {MARGIN}: each claim is that elastic's is at most 1% larger. "
    "`alone` has as many samples as elastic gives its width; `cut` is what both begin with, of `teacher`.",
)
STEPS = {"short": 600, "full": 3000, "tiny": 2}


def row(out: Path, tier: str, seed: int) -> Row:
    """Make the widths of one teacher, train them together and alone, measure all."""
    sizes = account.TIERS[tier]
    taught = account.teacher(out, sizes, seed)
    recipe = account.recipe(sizes, 4000 + seed, steps(sizes, tier, out, seed))
    done = run(out / f"family-elastic{seed}", recipe, 1)
    found = {ALONE[width]: account.metrics(done, name_of(width)) for width in WIDTHS}
    for arms, step in ((ELASTIC, "elastic"), (CUT, "nested")):
        measured = read_json(done / f"{step}-excess" / "step.json")["metrics"]["widths"]
        found |= {name: floats(measured[width]) for width, name in arms.items() if name in TABLE.paper}
    found["teacher"] = account.metrics(taught, "teacher")
    for name, measures in found.items():
        measures["within"] = measures["excess"] * (MARGIN if name in ALONE.values() else 1)
    return found


def steps(sizes: Mapping[str, Any], tier: str, out: Path, seed: int) -> list[dict[str, Any]]:
    """Return the recipe's steps: what is trained alone is cut out of the untrained widths."""
    widths, bundle = [float(width) for width in WIDTHS], str(account.teacher_bundle(out, seed))
    nested = {"use": "nested", "widths": widths, "search": {"use": "taylor"}}
    elastic = {**account.training(sizes, STEPS[tier]), "use": "elastic"}
    found: list[dict[str, Any]] = [
        {"prune": nested, "name": "nested", "input": bundle},
        {"distill": elastic, "name": "elastic", "input": "nested"},
    ]
    of = {"use": "excess", "num_draws": sizes["draws"]}
    by_width = {"use": "widths", "of": of}
    found += [{"evaluate": by_width, "name": f"{step}-excess", "input": step} for step in ("nested", "elastic")]
    for width in WIDTHS:
        cut = f"cut-{name_of(width)}"
        found.append({"prune": {"use": "nested", "take": float(width)}, "name": cut, "input": "nested"})
        how = account.training(sizes, samples_of(width, tier))
        found.append({"distill": how, "name": name_of(width), "input": cut})
        found.append(account.measured(name_of(width), sizes))
    return found


def samples_of(width: str, tier: str) -> int:
    """Return the steps at which the elastic training trains a width, on average."""
    return STEPS[tier] if width not in NARROW else STEPS[tier] // len(NARROW)


def name_of(width: str) -> str:
    """Name the separate training of a width."""
    return f"alone-{width.replace('.', '_')}"


def floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures among metrics."""
    return {name: value for name, value in metrics.items() if isinstance(value, float)}


def finished(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows, elastic's mean excess over that of separate trainings by width, and floors."""

    def mean(arm: str, name: str) -> float:
        return float(np.mean([row[arm][name] for row in rows]))

    ratios = {width: round(mean(ELASTIC[width], "excess") / mean(ALONE[width], "excess"), 4) for width in WIDTHS}
    floors = {name: round(mean("teacher", f"{name}_excess"), 4) for name in ("chance", "linear")}
    return list(rows), {"ratios": ratios, "floors": floors}


@torch.no_grad()
def check() -> dict[str, Any]:
    """Return a loss by hand, 3 of 8 heads at 0.375, and whether masked widths are the ones cut out.

    Velocities 1 (whole) and 0.5 (narrow), target 0: ``(1 + 0.25 + 1·0.25) / 2``.
    """
    loss = over_networks(torch.tensor([0.25, 1.0]), torch.tensor([0.25]), 1.0)
    denoiser = tiny_denoiser("video_dit", heads=8, head_width=4)
    widths = Widths.of(NestedOptions(levels=["head", "ffn"]), denoiser)
    nesting, _ = widths.proven(denoiser, lambda axis: tuple(range(axis.units))[::-1])
    heads = {len(units) for name, units in nesting.kept(0.375).items() if name.startswith("head:")}
    worst = 0.0
    for width in nesting.widths[:-1]:
        small = tiny_denoiser("video_dit", heads=8, head_width=4).double()
        reference = masked_output(small, widths.axes, nesting.kept(width))
        compact(small, widths.axes, nesting.kept(width))
        worst = max(worst, relative_error(example_output(small), reference))
    return {"loss": float(loss), "heads": sorted(heads), "masked_is_cut": worst <= TOLERANCE}
