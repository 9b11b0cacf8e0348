"""A search step against a plain training step of the same model: how much masks cost.

    python benchmarks/mask_overhead.py [--rounds 15] [--layers 6] [--tokens 128]

Three steps of the same reference DiT, weights, batch and optimiser, in one process, taken in turn: flow matching
with trainable weights (the plain step), group-wise search on the flow-matching loss, and group-wise search on the
loss with a teacher (affine KD). A step's time is the processor time of this process, so that other work on the
machine does not count. Ratios are medians over rounds of paired steps. The last line is one JSON object. Exit
status 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.data.samples import Samples
from dit_compress.model.flow import Flow
from dit_compress.model.text import Captions
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem
from dit_compress.step.world import World
from dit_compress.structure.copies import shared_copy
from dit_compress.train.loop import train_step
from dit_compress.train.trainee import trainees_of
from dit_compress_plugins.search_groupwise.search import CandidateLogits, GroupwiseSearch, MaskedObjective

if TYPE_CHECKING:
    from collections.abc import Callable

GOALS = {"step_ratio": 1.15, "step_ratio_kd": 1.5}
LEVELS = {"block": {"remove": 2}, "head": {"remove": 2}, "ffn": {"keep": 0.75}}


def main() -> int:
    """Print the ratios, and one JSON object."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    steps = made_steps(arguments)
    for step in steps.values():
        step(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1, arguments.rounds + 1):
        for name, step in steps.items():
            seconds[name].append(timed(step, number))
    found = {name: statistics.median(times) for name, times in seconds.items()}
    for name, value in found.items():
        print(f"{name:12} {value * 1e3:9.1f} ms a step")
    ratios = {
        f"step_ratio{suffix}": statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
        for name, suffix in (("search", ""), ("search_kd", "_kd"))
    }
    missed = [name for name, most in GOALS.items() if ratios[name] > most]
    for name, value in ratios.items():
        print(f"{'MISSED' if name in missed else 'met   '} {name} {value:.3f}, at most {GOALS[name]}")
    kept = {name: round(value, 4) for name, value in ratios.items()}
    print(json.dumps({**kept, "tokens": arguments.tokens, "rounds": arguments.rounds}))
    return 1 if missed else 0


def parsed() -> argparse.Namespace:
    """Parse the sizes. At the defaults matrix products dominate, as they do in training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="a multiple of 16")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def made_steps(arguments: argparse.Namespace) -> dict[str, Callable[[int], Any]]:
    """Make one call per step, by name; each has a model of its own with equal weights."""
    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    options = {"preset": "small", "layers": arguments.layers, "heads": arguments.heads, "text_width": 64}
    maker = make_part("model", {"use": "video_dit", **options, "channels": 64}, installed()).build()
    module = maker.create()
    text = Captions(make_part("text", {"use": "words", "width": 64}, installed()).build().create())
    text.requires_grad_(requires_grad=False)
    samples = random_samples(arguments, text)
    bundle = SimpleNamespace(flow=Flow(), spec=SimpleNamespace(text=None, denoiser=SimpleNamespace(log=())), lineage=[])
    context: Any = SimpleNamespace(
        input=bundle, slot=lambda _name: None, seed=0, name="benchmark", folder=folder, world=World.alone()
    )

    def plain() -> Callable[[int], Any]:
        part = make_part("distill", {"use": "flow", "batch": arguments.batch}, installed())
        student = maker.denoiser(copy.deepcopy(module))
        objective = part.build().objective(context, student, None, text)
        return stepping(objective, part.options)

    def search(inner: str) -> Callable[[int], Any]:
        asked = {"use": "groupwise", "batch": arguments.batch, "objective": inner, "steps": 10**6, "lora": None}
        part = make_part("search", {**asked, "groups": {"ffn": 8}}, installed())
        student = maker.denoiser(copy.deepcopy(module))
        problem = problem_of(student)
        cuts = {a.name: GroupwiseSearch(part.options).cut(a, problem, torch.ones(a.units)) for a in problem.axes}
        logits = CandidateLogits(cuts, 0.0, 0)
        objective = part.options.objective.build().objective(context, student, shared_copy(student), text)
        return stepping(MaskedObjective(objective, problem, logits, part.options, folder / "notes"), part.options)

    def stepping(objective: Any, options: Any) -> Callable[[int], Any]:
        trainees = trainees_of(objective.roles, context.world)
        return lambda number: train_step(objective, trainees, samples, options, context, number)

    return {"plain": plain(), "search": search("flow"), "search_kd": search("affine")}


def problem_of(denoiser: Any) -> SearchProblem:
    """Return the search problem, with all three levels."""
    structure = denoiser.structure()
    levels = {name: make_part("granularity", {"use": name, **given}, installed()) for name, given in LEVELS.items()}
    made = {name: part.build() for name, part in levels.items()}
    pairs = [(axis, level.keep(axis)) for level in made.values() for axis in level.axes(structure)]
    return SearchProblem(denoiser, tuple(a for a, _ in pairs), {a.name: keep for a, keep in pairs}, {"ffn": 32})


def random_samples(arguments: argparse.Namespace, text: Captions) -> Samples:
    """Return latents that are noise; captions of the vocabulary."""
    count = 4 * arguments.batch
    x0 = np.random.default_rng(0).standard_normal((count, 64, arguments.tokens // 16, 4, 4), dtype=np.float32)
    captions = ["a red circle moving left"] * count
    return Samples(x0, captions, text.encoder.tokenize(captions), pixels=False)


def timed(step: Callable[[int], Any], number: int) -> float:
    """Return the processor seconds of one step."""
    start = time.process_time()
    step(number)
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
