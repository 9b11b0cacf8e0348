"""A recipe of many steps is read in a time that grows as its length."""

from __future__ import annotations

import cProfile
import pstats
from contextlib import suppress

import pytest

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import Registry, installed
from dit_compress.recipe.document import Document, parse
from dit_compress.recipe.resolve import resolve

HEAD = "model: video_dit\ndata: shapes\ntext: words\nsteps:\n"
STEPS = {
    "numbered by the engine": "- distill: {{use: flow, steps: 1}}\n",
    "named": "- distill: {{use: flow, steps: 1}}\n  name: s{0:05}\n",
    "wrong": "- distill: {{use: flow, steps: 1}}\n  name: s{0:05}\n  input: t{0:05}\n",
}


def many(step: str, count: int) -> Document:
    return parse(HEAD + "".join(step.format(number) for number in range(count)), "many.yaml")


def num_calls(document: Document, registry: Registry) -> int:
    with cProfile.Profile() as profile, suppress(UserError):
        resolve(document, registry)
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_twice_the_steps_take_twice_the_calls(step: str) -> None:
    registry = installed()
    short, long = (num_calls(many(step, count), registry) for count in (600, 1200))
    assert long < 2.2 * short


def test_names_inputs_and_teachers_of_many_steps() -> None:
    steps = "- distill: affine\n- evaluate: latency\n- prune: {use: trilevel, levels: {block: {remove: 1}}, search: magnitude}\n"
    recipe = resolve(
        parse(HEAD + steps * 3 + "- distill: affine\n  name: affine-5\n- distill: affine\n", "many.yaml"), installed()
    )
    assert [(step.name, step.inputs.get("input"), step.inputs.get("teacher")) for step in recipe.steps] == [
        ("affine", "base", None),
        ("latency", "affine", None),
        ("trilevel", "affine", None),
        ("affine-2", "trilevel", "affine"),
        ("latency-2", "affine-2", None),
        ("trilevel-2", "affine-2", None),
        ("affine-3", "trilevel-2", "affine-2"),
        ("latency-3", "affine-3", None),
        ("trilevel-3", "affine-3", None),
        ("affine-5", "trilevel-3", "affine-3"),
        ("affine-4", "affine-5", "affine-3"),
    ]
