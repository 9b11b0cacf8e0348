"""Proof of a written file: reload it, execute it, compare it with its source.

A proof needs the artifact, its runner and golden arrays, and no torch. Rows of a proof: one per
arithmetic and input set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.export.compare import Comparison, compare, gate_db, judge, refused_below_db

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dit_compress.export.compare import Arithmetic, Verdict
    from dit_compress.export.types import Artifact, Runner

TYPICAL = "typical"
"""The input set whose outputs give the range that PSNR is relative to."""


@dataclass(frozen=True)
class Golden:
    """Inputs and the source's outputs of one input set."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One execution of one file."""

    component: str
    kind: str
    arithmetic: Arithmetic
    input_set: str
    comparison: Comparison
    verdict: Verdict
    gate_db: float

    def as_data(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "component": self.component,
            "kind": self.kind,
            "arithmetic": self.arithmetic,
            "input_set": self.input_set,
            "gate_db": self.gate_db,
            "verdict": self.verdict,
            **self.comparison.as_data(),
        }


def prove(artifact: Artifact, runner: Runner, golden: Mapping[str, Golden]) -> list[Row]:
    """Execute the file on every input set, in every arithmetic its runner has.

    Raises:
        UserError: an output is missing, has another shape, is not finite or is far under its gate.
    """
    rows = []
    for arithmetic in runner.arithmetics:
        found = {name: runner(each.inputs, arithmetic) for name, each in golden.items()}
        rows += judged(artifact, golden, found, arithmetic)
    refuse(artifact, rows)
    return rows


def judged(
    artifact: Artifact,
    golden: Mapping[str, Golden],
    found: Mapping[str, Mapping[str, np.ndarray]],
    arithmetic: Arithmetic,
) -> list[Row]:
    """Return one row per input set: what was computed somewhere, compared with the source's outputs."""
    typical = golden.get(TYPICAL)
    peaks = {name: float(np.abs(value).max(initial=0.0)) for name, value in typical.outputs.items()} if typical else {}
    rows = []
    for name, each in golden.items():
        compared = compare_outputs(artifact, each.outputs, found[name], peaks)
        verdict = judge(compared, arithmetic, artifact.weight_bits)
        gate = gate_db(arithmetic, artifact.weight_bits)
        rows.append(Row(artifact.component, artifact.kind, arithmetic, name, compared, verdict, gate))
    return rows


def refuse(artifact: Artifact, rows: Sequence[Row]) -> None:
    """Raise a UserError where a row is refused."""
    refusals = [_refusal(artifact, row) for row in rows if row.verdict == "refused"]
    if refusals:
        raise UserError.join(refusals)


def compare_outputs(
    artifact: Artifact,
    wanted: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    typical_peaks: Mapping[str, float],
) -> Comparison:
    """Return the worst figures over all outputs."""
    missing = wanted.keys() - found.keys()
    if missing:
        what = f"the file has no output {sorted(missing)}, only {sorted(found)}"
        raise UserError(what, where=str(artifact.path), mend="Export the bundle again")
    try:
        return Comparison.worst(
            compare(value, found[name], typical_peaks.get(name, 0.0)) for name, value in wanted.items()
        )
    except UserError as error:
        _, what, mend = error.problems[0]
        raise UserError(what, where=f"component {artifact.component}, {artifact.kind}", mend=mend) from error


def _refusal(artifact: Artifact, row: Row) -> UserError:
    least = refused_below_db(artifact.weight_bits)
    seen = (
        f"{row.comparison.nonfinite} values are not finite"
        if row.comparison.nonfinite
        else f"{row.comparison.psnr_db:.1f} dB, {least:.0f} dB is the least"
    )
    return UserError(
        f"the {artifact.kind} file computes something else: {seen} ({row.arithmetic}, {row.input_set} inputs)",
        where=f"component {artifact.component}",
        mend=_mend(artifact, row),
    )


def _mend(artifact: Artifact, row: Row) -> str:
    if artifact.weight_bits < 16:
        return "Choose more bits for the weights"
    return "Choose precision float32" if row.arithmetic == "float16" else "Report it to the exporter's authors"


# ------------------------------------------------------------------ golden tensors on disk


def write_golden(path: Path, golden: Mapping[str, Golden]) -> None:
    """Write safetensors named ``<set>/inputs/<name>`` and ``<set>/outputs/<name>``."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for name, each in golden.items():
        tensors |= {f"{name}/inputs/{key}": value for key, value in each.inputs.items()}
        tensors |= {f"{name}/outputs/{key}": value for key, value in each.outputs.items()}
    save_file(tensors, path)


def read_golden(path: Path) -> dict[str, Golden]:
    """Read what :func:`write_golden` wrote; sets and tensors in the order of their names.

    Raises:
        UserError: the file is missing or damaged.
    """
    golden: dict[str, Golden] = {}
    for key, value in read_tensors(path).items():
        name, part, tensor = key.split("/", 2)
        each = golden.setdefault(name, Golden({}, {}))
        (each.inputs if part == "inputs" else each.outputs)[tensor] = value
    return golden


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file.

    Raises:
        UserError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path)) from error
    except SafetensorError as error:
        raise UserError(f"not a whole safetensors file: {error}", where=str(path)) from error
