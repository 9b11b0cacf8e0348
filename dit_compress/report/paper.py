"""The paper's numbers (arXiv 2507.13343v1) beside a run's, where both mean the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from dit_compress.plugin.defaults import LEVELS
from dit_compress.report.result import arms

if TYPE_CHECKING:
    from dit_compress.report.data import Pruning, Run, Step
    from dit_compress.report.result import Outcome


@dataclass(frozen=True)
class Pair:
    """One quantity: where the paper states it, its value and the run's."""

    what: str
    where: str
    paper: str
    ours: str


def compared(run: Run, result: Outcome) -> list[Pair]:
    """List what can be set side by side; empty for a run that neither prunes nor takes few steps."""
    return [*_size(result), *_units(run, result), *_sampling(run, result), *_codec(run), *_quality(run, result)]


def _size(result: Outcome) -> list[Pair]:
    if not (result.pruned and result.params_share and result.teacher_params and result.student_params):
        return []
    before, after = (f"{count / 1e6:,.2f}M" for count in (result.teacher_params, result.student_params))
    ours = f"{before} → {after} ({result.params_share:.0%})"
    return [Pair("Parameters of the DiT", "tri-level pruning", "2B → 915M (46%)", ours)]


def _units(run: Run, result: Outcome) -> list[Pair]:
    step = run.step(result.pruned)
    if step is None or step.pruning is None:
        return []
    paper = (("Blocks removed", "8 of 28 (29%)"), ("Heads removed, per attention", "12 of 32 (38%)"),
             ("FFN channels removed, per block", "25%"))  # fmt: skip
    pairs = []
    for level, (what, theirs) in zip(LEVELS, paper, strict=True):
        if (removed := _removed(step.pruning, level)) is not None:
            pairs.append(Pair(what, "tri-level pruning", theirs, removed))
    return pairs


def _removed(pruning: Pruning, level: str) -> str | None:
    """Format as ``2 of 8 (25%)``; only the share where the axes that stay differ."""
    axes = [axis for axis in pruning.axes if axis.level == level and pruning.stays(axis)]
    if not axes:
        return None
    counts = {(axis.units - len(pruning.kept_units(axis)), axis.units) for axis in axes}
    gone, total = (sum(count[place] for count in counts) for place in (0, 1))
    return f"{gone:,} of {total:,} ({gone / total:.0%})" if len(counts) == 1 else f"{gone / total:.0%} on average"


def _sampling(run: Run, result: Outcome) -> list[Pair]:
    if result.times_faster is None:
        return []
    speed = next(step for step in run.of_kind("evaluate") if step.metrics.get("times_faster") == result.times_faster)
    how = f" ({speed.metrics['steps']} steps)" if "steps" in speed.metrics else ""
    return [Pair("Sampling, 4 steps without guidance against 40 with it", "adversarial distillation",
                 "20× from the steps alone", f"{result.times_faster:.3g}×, pruning included{how}")]  # fmt: skip


def _codec(run: Run) -> list[Pair]:
    figures = [step.metrics["psnr_db"] for step in run.of_kind("evaluate") if "psnr_db" in step.metrics]
    ratios = [step.options.get("ratio") for step in run.of_kind("latent")]
    if not figures or "8x32x32" not in ratios:
        return []
    return [Pair("VAE 8×32×32, PSNR", "Table 3", "30.6 dB", f"{figures[0]:.1f} dB")]


def _quality(run: Run, result: Outcome) -> list[Pair]:
    """Compare two trainings of the pruned model that differ in a teacher alone, judged alike."""
    metric, found = result.quality_metric, arms(run)
    trained = [step for step in run.of_kind("distill") if step.source == result.pruned]
    for without, taught in product(trained, trained):
        if "teacher" in without.inputs or "teacher" not in taught.inputs or not _alike(without, taught):
            continue
        for one, other in product(found, found):
            sampled = (one.num_steps, one.guidance) == (other.num_steps, other.guidance)
            figures = [value for value in (one.quality(metric), other.quality(metric)) if value is not None]
            if sampled and (one.of, other.of) == (without.name, taught.name) and len(figures) == 2:
                ours = " → ".join(f"{value:.3f}" for value in figures)
                return [
                    Pair(
                        "Pruned model trained without → with KD", "Table 4", "79.00 → 81.45 (VBench total score)", ours
                    )
                ]
    return []


def _alike(one: Step, other: Step) -> bool:
    """Tell whether two trainings have equal options, as far as both have them: steps, batch, rates."""
    return all(one.options[key] == other.options[key] for key in one.options.keys() & other.options.keys() - {"use"})
