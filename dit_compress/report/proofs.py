"""The proofs of the export steps: per component and arithmetic, the agreement on every set of inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dit_compress.report.data import Run, Step

PASSED, UNVERIFIED = "passed", "UNVERIFIED"
_WORST = ("refused", UNVERIFIED, "below", PASSED)


@dataclass(frozen=True)
class Check:
    """The agreement on one set of inputs, in dB; None where values were not finite."""

    input_set: str
    psnr_db: float | None
    max_abs: float | None
    verdict: str


@dataclass(frozen=True)
class Proof:
    """One file in one arithmetic."""

    step: str
    component: str
    artifact: str
    precision: str
    arithmetic: str
    fidelity: str
    gate_db: float | None
    size_bytes: int | None
    seconds: float | None
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """The worst of its checks; UNVERIFIED where nothing was executed."""
        if self.fidelity == "none" or not self.checks:
            return UNVERIFIED
        return min((check.verdict for check in self.checks), key=_rank)

    def check(self, input_set: str) -> Check | None:
        """Return the check on one set of inputs."""
        return next((check for check in self.checks if check.input_set == input_set), None)


def _rank(verdict: str) -> int:
    return _WORST.index(verdict) if verdict in _WORST else 0


def verdict(step: Step) -> bool | None:
    """Tell whether an export step passed; None where it holds no verdict."""
    for source in (step.metrics, step.manifest or {}):
        if isinstance(passed := source.get("passed"), bool):
            return passed
    found = list(_proofs_of(step))
    return all(proof.verdict == PASSED for proof in found) if found else None


def proofs(run: Run) -> list[Proof]:
    """Return all proofs, in the order of the steps."""
    return [proof for step in run.of_kind("export") for proof in _proofs_of(step)]


def input_sets(found: list[Proof]) -> list[str]:
    """Return the sets of inputs, in the order of their first appearance."""
    return list(dict.fromkeys(check.input_set for proof in found for check in proof.checks))


def _proofs_of(step: Step) -> Iterator[Proof]:
    if step.manifest and "artifacts" in step.manifest:
        for artifact in step.manifest["artifacts"]:
            yield from _of_artifact(step, artifact)
    elif isinstance(step.metrics.get("components"), list):
        for component in step.metrics["components"]:
            yield from _of_artifact(step, _as_artifact(component))


def _of_artifact(step: Step, artifact: dict[str, Any]) -> Iterator[Proof]:
    """Yield one proof per arithmetic; one without checks where nothing was executed."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in artifact.get("proof") or []:
        rows.setdefault(row["arithmetic"], []).append(row)
    seconds = step.metrics.get("seconds_by_component")
    for arithmetic, checked in (rows or {"–": []}).items():
        yield Proof(
            step=step.name,
            component=artifact["component"],
            artifact=artifact["kind"],
            precision=artifact.get("precision", "–"),
            arithmetic=arithmetic,
            fidelity=artifact.get("fidelity", "none"),
            gate_db=next((row.get("gate_db") for row in checked), None),
            size_bytes=artifact.get("bytes"),
            seconds=seconds.get(artifact["component"]) if isinstance(seconds, dict) else artifact.get("seconds"),
            checks=tuple(_check(row) for row in checked),
        )


def _check(row: dict[str, Any]) -> Check:
    return Check(row["input_set"], row.get("psnr_db"), row.get("max_abs"), row["verdict"])


def _as_artifact(component: dict[str, Any]) -> dict[str, Any]:
    """Write the short form of ``metrics["components"]`` in the manifest's words; verdicts by the toolkit's gates."""
    from dit_compress.export.compare import GATES_DB, REFUSED_BELOW_DB

    def row(entry: dict[str, Any]) -> dict[str, Any]:
        gate: float = GATES_DB.get(entry["precision"], max(GATES_DB.values()))
        value = -math.inf if entry.get("psnr_db") is None or entry.get("nonfinite") else entry["psnr_db"]
        word = PASSED if value >= gate else "below" if value >= REFUSED_BELOW_DB else "refused"
        names = {"arithmetic": entry["precision"], "input_set": entry["inputs"]}
        return {**entry, **names, "gate_db": gate, "verdict": word}

    return {**component, "component": component["name"], "kind": component["artifact"],
            "proof": [row(entry) for entry in component.get("verified", [])]}  # fmt: skip
