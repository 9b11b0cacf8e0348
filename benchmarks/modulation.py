"""Per-block modulation (AdaLN) of every transformer of diffusers that can be built small: found, folded, or refused.

    python benchmarks/modulation.py [CLASS ...]

For each class of the zoo, without any code written for it: the linears that make a block's modulation out of the
timestep, by observation; where they read it alone, a table over four timesteps, compared in float32 with the whole
model on *other* features than those that it was made with, at each timestep; a timestep between two rows must raise.
Where they read more, the table must be refused and low rank taken instead (rank 4), with its error. What the sources
say stands in ``TRUTH``: by what the blocks are modulated, as observed once and checked against
the names of their modules.

*Silently wrong*: a table that differs by more than 100 dB allow, or that gives something for another timestep; linears
that the source does not know, or does not find; a model that changes though the step refused.

The last line is one JSON object: ``classes`` (those whose blocks have modulation of their own), ``found``,
``folded`` (of them by table), ``folded_db_min`` (goal 100), ``silently_wrong`` (goal 0). Exit status 1 where a goal is
missed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "zoo"))

import models

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.structure.observe.modulation import modulation
from dit_compress.structure.record import Call, map_tensors, tensors_in

GOAL_DB = 100.0
TIMES = {"half": (0.97, 0.66, 0.25, 0.125), "whole": (1000.0, 750.0, 441.5, 3.0)}
"""Timesteps of the tables, by the size of the class's own."""
BETWEEN = {"half": 0.5, "whole": 500.0}

TIME, TEXT, POOLED = "timestep", "encoder_hidden_states", "pooled_projections"
SIZES = ("original_size", "target_size", "crop_coords")
TRUTH: dict[str, dict[frozenset[str], int]] = {
    "AuraFlowTransformer2DModel": {frozenset({TIME}): 12},
    "BriaTransformer2DModel": {frozenset({TIME}): 12},
    "BriaFiboTransformer2DModel": {frozenset({TIME}): 12},
    "CogVideoXTransformer3DModel": {frozenset({TIME}): 8},
    "CogView3PlusTransformer2DModel": {frozenset({TIME, *SIZES}): 4},
    "CogView4Transformer2DModel": {frozenset({TIME, *SIZES}): 4},
    "ConsisIDTransformer3DModel": {frozenset({TIME}): 8},
    "CosmosTransformer3DModel": {frozenset({TIME}): 24},
    "DiTTransformer2DModel": {frozenset({TIME}): 8, frozenset({TIME, "class_labels"}): 4},
    "EasyAnimateTransformer3DModel": {frozenset({TIME}): 8},
    "FluxTransformer2DModel": {frozenset({TIME, POOLED}): 12},
    "GlmImageTransformer2DModel": {frozenset({TIME, *SIZES[1:]}): 4},
    "HiDreamImageTransformer2DModel": {frozenset({"timesteps", "pooled_embeds"}): 6},
    "HunyuanDiT2DModel": {frozenset({TIME, "encoder_hidden_states_t5", "image_meta_size", "style"}): 4},
    "HunyuanVideoTransformer3DModel": {frozenset({TIME, POOLED, "guidance"}): 12, frozenset({TIME, TEXT}): 2},
    "HunyuanVideo15Transformer3DModel": {frozenset({TIME}): 8, frozenset({TIME, TEXT}): 2},
    "HunyuanVideoFramepackTransformer3DModel": {frozenset({TIME, POOLED, "guidance"}): 12, frozenset({TIME, TEXT}): 2},
    "Ideogram4Transformer2DModel": {frozenset({TIME}): 4},
    "LongCatImageTransformer2DModel": {frozenset({TIME}): 12},
    "Lumina2Transformer2DModel": {frozenset({TIME}): 6},
    "LuminaNextDiT2DModel": {frozenset({TIME, TEXT}): 4},
    "MiniMaxH3Transformer3DModel": {frozenset({TIME}): 4},
    "MochiTransformer3DModel": {frozenset({TIME, TEXT}): 8},
    "MotifVideoTransformer3DModel": {frozenset({TIME}): 12},
    "NucleusMoEImageTransformer2DModel": {frozenset({TIME}): 4},
    "OvisImageTransformer2DModel": {frozenset({TIME}): 12},
    "PRXTransformer2DModel": {frozenset({TIME}): 4},
    "QwenImageTransformer2DModel": {frozenset({TIME}): 8},
    "SD3Transformer2DModel": {frozenset({TIME, POOLED}): 8},
    "ZImageTransformer2DModel": {frozenset({"t"}): 6},
}
"""Classes whose blocks have linears of modulation: how many, by the arguments that they read. The other classes of the
zoo modulate by tables (Wan, LTX, PixArt, Sana), by one linear or one network for all blocks (Flux2, Ernie, Chroma), by
tokens (OmniGen), or not at all."""


@dataclass
class Verdict:
    """What became of one class."""

    name: str
    found: dict[frozenset[str], int] = field(default_factory=dict)
    share: float = 0.0
    folded_db: float | None = None
    error: float | None = None
    said: str = ""
    folded: nn.Module | None = None
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    """Print a row for each class, and one JSON object."""
    parser = argparse.ArgumentParser(description="Per-block modulation over the transformers of diffusers.")
    parser.add_argument("classes", nargs="*", help="classes; all of them if absent")
    names = parser.parse_args().classes or sorted(models.FIXTURES)
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    start, verdicts = time.monotonic(), []
    print(f"{'class':42}{'linears':>8}{'share':>7}{'table':>9}{'rank 4':>9}")
    for name in names:
        verdicts.append(judged(name))
        show(verdicts[-1])
    figures = summed(verdicts)
    print(json.dumps({**figures, "seconds": round(time.monotonic() - start)}))
    met = not figures["silently_wrong"] and figures["found"] == figures["classes"]
    return 0 if met and (figures["folded_db_min"] or GOAL_DB) >= GOAL_DB else 1


def judged(name: str) -> Verdict:
    """Find, fold, factor and refuse, on fresh copies of one class."""
    verdict = Verdict(name)
    module, inputs = models.build(name)
    call = Call((), inputs, recorded=True)
    found = modulation(module, call)
    for item in found.linears:
        reads = frozenset(map(str, item.reads))
        verdict.found[reads] = verdict.found.get(reads, 0) + 1
    if verdict.found != TRUTH.get(name, {}):
        verdict.wrong.append(f"found {shown(verdict.found)}, the source has {shown(TRUTH.get(name, {}))}")
    own = sum(p.numel() for item in found.linears for p in module.get_submodule(item.path).parameters())
    verdict.share = own / sum(p.numel() for p in module.parameters())
    alone = [next(iter(reads)) for reads in verdict.found if len(reads) == 1]
    clocks = [key for key in (*alone, TIME, "timesteps") if isinstance(inputs.get(key), Tensor)]
    clock = clocks[0] if clocks else None
    size = "whole" if clock is None or bool((inputs[clock] > 1).any()) else "half"
    given = [other(inputs, clock, value) for value in TIMES[size]] if clock else [inputs]
    fold(verdict, module, inputs, given, TIMES[size])
    if clock in alone and verdict.folded_db is not None:
        refuse_between(verdict, other(inputs, clock, BETWEEN[size]))
    factored(verdict, module, inputs, given[0])
    verdict.folded = None
    return verdict


def fold(
    verdict: Verdict, module: nn.Module, inputs: dict[str, Any], others: list[dict[str, Any]], times: tuple[float, ...]
) -> None:
    """Make a table and compare it at each timestep; where it is refused nothing may have changed."""
    pruned = copy.deepcopy(module)
    try:
        dit_compress.prune(pruned, modulation={"table": times}, call=Call((), inputs, recorded=True))
    except UserError as error:
        verdict.said = error.problems[0][1]
        if any(len(reads) == 1 for reads in verdict.found):
            verdict.wrong.append(f"a table is refused: {verdict.said}")
        after = pruned.state_dict()
        # A class leaves a tensor as it finds the memory, NaN at times.
        if any(not torch.equal(x.nan_to_num(), after[key].nan_to_num()) for key, x in module.state_dict().items()):
            verdict.wrong.append("refused, and changed all the same")
        return
    verdict.folded = pruned
    verdict.folded_db = min(decibel(called(pruned, given), called(module, given)) for given in others)
    if not verdict.folded_db >= GOAL_DB:
        verdict.wrong.append(f"the table differs: {verdict.folded_db:.0f} dB")


def refuse_between(verdict: Verdict, given: dict[str, Any]) -> None:
    """Call a folded model at a timestep between two rows: it must raise."""
    assert verdict.folded is not None
    try:
        called(verdict.folded, given)
    except UserError as error:
        verdict.said = error.problems[0][1]
    else:
        verdict.wrong.append("a timestep that is not in the table gives something")


def factored(verdict: Verdict, module: nn.Module, inputs: dict[str, Any], given: dict[str, Any]) -> None:
    """Take low rank; state the error of the output, on other inputs."""
    pruned = copy.deepcopy(module)
    try:
        dit_compress.prune(pruned, modulation={"rank": 4}, call=Call((), inputs, recorded=True))
    except UserError as error:
        verdict.said = verdict.said or error.problems[0][1]
        return
    outputs = called(pruned, given), called(module, given)
    verdict.error = max(float((a - b).norm() / b.norm()) for a, b in zip(*outputs, strict=True))


def other(inputs: dict[str, Any], clock: str, value: float) -> dict[str, Any]:
    """Return the inputs with other features, at one timestep; sizes, positions and masks stay."""
    torch.manual_seed(7)

    def changed(tensor: Tensor) -> Tensor:
        noise = tensor.is_floating_point() and tensor.ndim > 2
        return torch.randn_like(tensor) if noise else tensor

    return {**map_tensors(changed, inputs), clock: torch.full_like(inputs[clock], value, dtype=torch.float32)}


@torch.no_grad()
def called(module: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """Return what a module gives."""
    torch.manual_seed(0)
    return tensors_in(module(**map_tensors(Tensor.clone, inputs)))


def decibel(candidate: list[Tensor], reference: list[Tensor]) -> float:
    """Return the peak signal over the mean square of the difference, 200 where they are equal."""
    levels = []
    for one, two in zip(candidate, reference, strict=True):
        error = float((one.double() - two.double()).square().mean())
        peak = torch.tensor(float(two.abs().max()) ** 2 / max(error, 1e-300))
        levels.append(min(200.0, float(10 * torch.log10(peak.double()))) if error else 200.0)
    return min(levels)


def shown(found: dict[frozenset[str], int]) -> str:
    """Show ``8 by timestep``."""
    return ", ".join(f"{count} by {'+'.join(sorted(reads))}" for reads, count in found.items()) or "none"


def show(verdict: Verdict) -> None:
    """Print a row, and what needs a word."""
    table = "–" if verdict.folded_db is None else f"{verdict.folded_db:.0f} dB"
    rank = "–" if verdict.error is None else f"{verdict.error:.3f}"
    count = sum(verdict.found.values())
    print(f"{verdict.name:42}{count:>8}{verdict.share:>7.0%}{table:>9}{rank:>9}  {verdict.said[:110]}", flush=True)
    for text in verdict.wrong:
        print(f"    wrong: {text}")


def summed(verdicts: list[Verdict]) -> dict[str, Any]:
    """Sum up the figures."""
    levels = [v.folded_db for v in verdicts if v.folded_db is not None]
    return {
        "classes": sum(v.name in TRUTH for v in verdicts),
        "found": sum(v.name in TRUTH and v.found == TRUTH[v.name] for v in verdicts),
        "folded": len(levels),
        "folded_db_min": round(min(levels), 1) if levels else None,
        "low_rank": sum(v.error is not None for v in verdicts),
        "refused": sum(not v.found for v in verdicts),
        "silently_wrong": sum(bool(v.wrong) for v in verdicts),
    }


if __name__ == "__main__":
    sys.exit(main())
