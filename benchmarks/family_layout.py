"""Layouts within a budget: a dynamic programme, an evolution and chance, each by its regret to the enumerated optimum.

Three kinds of losses, every layout priced by a table of seconds, the budget met by half of them. ``planted``: what
blocks lose adds up. ``interacting``: each pair of replaced blocks loses or gains as well, which the programme does not
see: no claim. ``measured``: a teacher of the mixture world, some of whose blocks get other attentions; held-out loss
after equal short healing of each layout.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import account
import numpy as np
from paired import Table

from dit_compress.core.randomness import generator
from dit_compress.measure.figure3 import opened
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.structure.choices import Choice, LayoutProblem, Prices, Remembered, every
from dit_compress.structure.choices import row as letters
from dit_compress.structure.programme import best
from dit_compress_plugins.transform_attention.places import replaceable
from dit_compress_plugins.transform_attention.step import rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paired import Row

KINDS = {"full": 1.0, "linconv": 0.6, "stride": 0.45, "global_local": 0.7}
"""Seconds of a block, by kind, before each block's own factor."""
TABLE = Table(
    "Layouts within a budget: regret to the optimum of all layouts",
    {"dp": "S2DiT: –", "evolution": "SnapGen-V: –", "random": "–"},
    {"planted": 5, "interacting": 5, "measured": 6},
    (
        ("evolution", "random", "planted", -1),
        ("evolution", "random", "interacting", -1),
        ("evolution", "random", "measured", -1),
        ("dp", "random", "planted", -1),
        ("dp", "random", "measured", -1),
    ),
    "not stated",
    "`planted` and `interacting`: 4 blocks of 4 kinds, 64 layouts tried by evolution and chance, mean over landscapes. "
    "`measured`: layouts of a trained teacher, 16 tried; the programme scores each kind in each block alone.",
)
SIZES: dict[str, dict[str, Any]] = {
    "short": {"landscapes": 20, "blocks": 4, "offer": ["linconv", "stride"], "heal": 30, "fit": 30, "samples": 128},
    "full": {
        "landscapes": 100, "blocks": 4, "offer": ["linconv", "stride", "global_local"], "heal": 200, "fit": 100,
        "samples": 512,
    },
    "tiny": {"landscapes": 1, "blocks": 2, "offer": ["stride"], "heal": 1, "fit": 1, "samples": 2},
}  # fmt: skip
"""landscapes: of planted losses for a seed. blocks, offer: of the teacher, what may change. heal: steps."""
TRIED, TRIED_MEASURED = 64, 16
INTERACTION = 0.25
"""Standard deviation of what a pair of replaced blocks adds, of six; a block alone adds 0.42 on average."""


def row(out: Path, tier: str, seed: int) -> Row:
    """Return each searcher's regrets on the landscapes of a seed."""
    found: Row = {name: {} for name in TABLE.paper}
    for measure, interaction in (("planted", 0.0), ("interacting", INTERACTION)):
        problems = [planted(seed, number, interaction) for number in range(SIZES[tier]["landscapes"])]
        regrets = [searched(problem, 1000 * seed + place, TRIED) for place, problem in enumerate(problems)]
        for name in found:
            found[name][measure] = float(np.mean([regret[name] for regret in regrets]))
    for name, regret in searched(measured(out, tier, seed), seed, TRIED_MEASURED).items():
        found[name]["measured"] = regret
    return found


def searched(problem: LayoutProblem, seed: int, tried: int) -> dict[str, float]:
    """Return the loss of what each searcher finds, less that of the best layout within the budget."""
    work = SimpleNamespace(seed=seed, say=lambda _text: None)
    fitting = [layout for layout in every(problem.choices) if problem.fits(layout)]
    losses = [problem.measure(layout) for layout in fitting]
    found = {"dp": {"use": "dp"}, "evolution": {"use": "evolution", "evaluations": tried}}
    chosen = {name: make_part("layout", how, installed()).build().choose(problem, work) for name, how in found.items()}
    order = generator(seed, "chance").permutation(len(fitting))[:tried]
    regrets = {name: problem.measure(each.layout) - min(losses) for name, each in chosen.items()}
    # What adds up in another order differs by rounding.
    regrets = {name: 0.0 if abs(value) < 1e-12 else value for name, value in regrets.items()}
    return {**regrets, "random": min(losses[place] for place in order) - min(losses)}


# ------------------------------------------------------------------ losses


def priced(rng: np.random.Generator, kinds: Mapping[str, Sequence[str]]) -> tuple[Choice, ...]:
    """Return choices with seconds: those of the kinds, each up to a fifth more or less."""
    return tuple(
        Choice(block, {kind: Prices(seconds=KINDS[kind] * rng.uniform(0.8, 1.2)) for kind in own})
        for block, own in kinds.items()
    )


def half_met(problem: LayoutProblem) -> LayoutProblem:
    """Return the problem with a budget of seconds that half of the layouts meet."""
    seconds = [problem.prices(layout).seconds for layout in every(problem.choices)]
    return replace(problem, budget={"seconds": float(np.median(seconds))})


def planted(seed: int, number: int, interaction: float) -> LayoutProblem:
    """Return 256 layouts: kinds that save much lose much, by chance, and pairs of replaced blocks interact."""
    rng = generator(seed, "layouts", number)
    choices = priced(rng, {f"block {index}": list(KINDS) for index in range(4)})
    alone = {c.block: {kind: (1 - KINDS[kind]) * rng.exponential() for kind in KINDS} for c in choices}
    drawn = {pair: rng.normal(size=(len(KINDS), len(KINDS))) for pair in combinations(range(4), 2)}
    place = {kind: index for index, kind in enumerate(KINDS)}

    def loss(layout: Mapping[str, str]) -> float:
        kinds = list(layout.values())
        pairs = [
            drawn[one, other][place[kinds[one]], place[kinds[other]]]
            for one, other in drawn
            if "full" not in (kinds[one], kinds[other])
        ]
        return 1 + sum(alone[block][kind] for block, kind in layout.items()) + interaction * float(sum(pairs))

    return half_met(LayoutProblem(choices, {}, loss))


def measured(out: Path, tier: str, seed: int) -> LayoutProblem:
    """Return the layouts of the first blocks of a seed's teacher; every loss is measured once, and kept."""
    sizes, own = account.TIERS[tier], SIZES[tier]
    account.teacher(out, sizes, seed)
    folder = out / f"family-layout{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    context, denoiser = opened(str(account.teacher_bundle(out, seed)), folder)
    trial = {"steps": own["heal"], "batch": sizes["batch"], "samples": own["samples"]}
    given = {"use": "attention", "layout": "dp", "offer": own["offer"], "fit": own["fit"], "trial": trial}
    step = make_part("transform", given, installed()).build()
    search = step.search(denoiser, replaceable(denoiser), rows_of(context, denoiser))
    kinds = dict(list(search.kinds.items())[: own["blocks"]])
    choices = priced(generator(seed, "layouts of a teacher"), kinds)
    loss = search.loss(context)
    assert loss is not None
    return half_met(LayoutProblem(choices, {}, Remembered(loss, folder / "losses.jsonl")))


# ------------------------------------------------------------------ what follows


def finished(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows, and mean regrets by searcher."""
    return list(rows), {
        f"regret_{name}": {
            measure: round(float(np.mean([row[name][measure] for row in rows])), 7) for measure in TABLE.measures
        }
        for name in TABLE.paper
    }


def check() -> dict[str, Any]:
    """Return the programme's answer where saving 3 costs 5 at least, and the best of all 3^6 layouts.

    In block b = 1 … 6 linconv saves 1 of 3 and loses b, stride saves 2 and loses 3b: stride in block 1 and linconv in
    block 2 lose 3 + 2; linconv in blocks 1, 2 and 3 would lose 6.
    """
    options = {kind: Prices(params=left) for kind, left in (("full", 3), ("linconv", 2), ("stride", 1))}
    problem = LayoutProblem(tuple(Choice(f"block {b}", options) for b in range(1, 7)), {"params": 15})
    scores = {f"block {b}": {"full": 0.0, "linconv": 1.0 * b, "stride": 3.0 * b} for b in range(1, 7)}
    found = best(problem, scores)[0]
    layouts = list(every(problem.choices))
    fitting = [layout for layout in layouts if problem.fits(layout)]
    least = min(sum(scores[block][kind] for block, kind in layout.items()) for layout in fitting)
    return {
        "row": letters(problem.choices, found.layout),
        "score": found.history["score"],
        "enumerated": least,
        "layouts": len(layouts),
    }
