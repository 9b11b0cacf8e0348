"""Proof of a written file: reload it, execute it, compare it with its source.

A proof needs the artifact, its runner and golden arrays; of torch only the source's outputs were made
with it. Rows of a proof: one per arithmetic and input set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.errors import UserError
from dit_compress.verify import REFUSED_BELOW_DB, Comparison, compare, gate_db, judge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.export.types import Artifact, Runner
    from dit_compress.verify import Arithmetic, Verdict

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

    def as_data(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "component": self.component,
            "kind": self.kind,
            "arithmetic": self.arithmetic,
            "input_set": self.input_set,
            "gate_db": gate_db(self.arithmetic),
            "verdict": self.verdict,
            **self.comparison.as_data(),
        }


def prove(artifact: Artifact, runner: Runner, golden: Mapping[str, Golden]) -> list[Row]:
    """Execute the file on every input set, in every arithmetic its runner has.

    Raises:
        UserError: an output is missing, has another shape, is not finite or is under 40 dB.
    """
    typical = golden.get(TYPICAL)
    peaks = {name: float(np.abs(value).max(initial=0.0)) for name, value in typical.outputs.items()} if typical else {}
    rows = []
    for arithmetic in runner.arithmetics:
        for name, each in golden.items():
            found = runner(each.inputs, arithmetic)
            compared = compare_outputs(artifact, each.outputs, found, peaks)
            rows.append(Row(artifact.component, artifact.kind, arithmetic, name, compared, judge(compared, arithmetic)))
    refusals = [_refusal(artifact, row) for row in rows if row.verdict == "refused"]
    if refusals:
        raise UserError.join(refusals)
    return rows


def compare_outputs(
    artifact: Artifact,
    wanted: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    typical_peaks: Mapping[str, float],
) -> Comparison:
    """The worst figures over all outputs."""
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
    seen = (
        f"{row.comparison.nonfinite} values are not finite"
        if row.comparison.nonfinite
        else f"{row.comparison.psnr_db:.1f} dB, {REFUSED_BELOW_DB:.0f} dB is the least"
    )
    return UserError(
        f"the {artifact.kind} file computes something else: {seen} ({row.arithmetic}, {row.input_set} inputs)",
        where=f"component {artifact.component}",
        mend="Choose precision float32" if row.arithmetic == "float16" else "Report it to the exporter's authors",
    )
