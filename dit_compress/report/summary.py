"""``summary.json``: every figure of every step.

    {"schema": 1, "run": name,
     "result": {teacher, student, pruned: step names; teacher_params, student_params, params_share;
                teacher_flops, student_flops, flops_share;
                times_faster; quality_metric; quality and sampling steps of each: teacher_quality,
                teacher_steps, …; quality_share; exports_passed},         what is known of it
     "steps": [{"name", "kind", "plugin", "inputs": {slot: step}, "seconds", "peak_memory_mib", "warnings", "threads",
                "model": {params, flops, …}, "metrics": {"accuracy.shape": 0.97, …}, "bundle": sha256}],
     "pending": [steps that are not finished],
     "total_seconds": …, "environment": {torch, device, seed, threads, machine, system, cpus}}

Nested metrics are flat, their keys joined by dots; lists stay lists; what is not finite is null.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.report.data import Run, Step
    from dit_compress.report.result import Outcome

SCHEMA = 1


def summarise(run: Run, outcome: Outcome) -> dict[str, Any]:
    """Return the run's figures as JSON data."""
    return {
        "schema": SCHEMA,
        "run": run.name,
        "result": {key: value for key, value in asdict(outcome).items() if value is not None},
        "steps": [step_figures(step) for step in run.steps],
        "pending": list(run.pending),
        "total_seconds": round(sum(step.seconds for step in run.steps), 2),
        "environment": run.environment,
    }


def step_figures(step: Step) -> dict[str, Any]:
    """Return one step's figures."""
    return {
        "name": step.name,
        "kind": step.kind,
        "plugin": step.plugin,
        "inputs": step.inputs,
        "seconds": step.seconds,
        "peak_memory_mib": step.peak_memory_mib,
        "warnings": list(step.warnings),
        "threads": step.threads,
        "model": step.model,
        "metrics": flatten(step.metrics),
        "bundle": step.bundle,
    }


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn ``{"accuracy": {"shape": 1}}`` into ``{"accuracy.shape": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: _finite(value)}
    return flat


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON has not."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
