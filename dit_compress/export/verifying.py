"""``dit-compress verify FOLDER``: prove a package anew, wherever it lies. Needs no torch and no source bundle.

The saved inputs are given to the best runner of this machine (ONNX Runtime, Core ML on a Mac …), or the
outputs of a device are read from a file: safetensors named ``<component>/<set>/<output>``. A stronger proof
replaces the recorded one; a weaker one changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import sealed, write_json
from dit_compress.export.folder import artifact_of, check_files, read_manifest, runner_of, summarise
from dit_compress.export.proof import judged, prove, read_golden, read_tensors, refuse
from dit_compress.export.types import FIDELITIES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from dit_compress.export.proof import Golden, Row
    from dit_compress.export.types import Artifact, Fidelity
    from dit_compress.plugin.registry import Registry


@dataclass(frozen=True)
class Verification:
    """The outcome of a proof.

    fidelity: of this proof, the weakest of its artifacts; ``none`` where one was not executed.
    recorded: what the manifest said before, and says now.
    """

    fidelity: Fidelity
    recorded: tuple[Fidelity, Fidelity]
    rows: list[Row]
    not_executed: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Everything was executed, and reached its gate."""
        return not self.not_executed and all(row.verdict == "passed" for row in self.rows)


def verify_folder(folder: Path, registry: Registry, outputs: Path | None = None) -> Verification:
    """Compare checksums, execute (or read) every artifact's outputs, raise the recorded fidelity.

    Raises:
        UserError: a file is missing or changed, an artifact computes something else, the manifest is too new.
            Independent problems come together; the manifest stays as it was.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    given = _split(read_tensors(outputs)) if outputs else None
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    problems: list[UserError] = []
    found: list[Fidelity] = []
    raised = False
    for entry in manifest["artifacts"]:
        artifact, golden = artifact_of(folder, entry), read_golden(folder / entry["golden"])
        try:
            if given is None:
                fidelity, proof, reason = _executed(artifact, golden, manifest, registry)
            else:
                fidelity, proof, reason = _read(artifact, golden, given, outputs)
        except UserError as error:
            problems.append(error)
            continue
        found.append(fidelity)
        rows += proof
        if reason:
            skipped[artifact.component] = reason
        elif FIDELITIES.index(fidelity) > FIDELITIES.index(entry["fidelity"]):
            entry.update(fidelity=fidelity, proof=[row.as_data() for row in proof])
            entry.pop("stamp", None)
            raised = True
    if problems:
        raise UserError.join(problems)
    before = manifest["fidelity"]
    if raised:
        _rewrite(folder, manifest)
    weakest: Fidelity = min(found, key=FIDELITIES.index, default="none")
    return Verification(weakest, (before, manifest["fidelity"]), rows, skipped)


def _executed(
    artifact: Artifact, golden: Mapping[str, Golden], manifest: Mapping[str, Any], registry: Registry
) -> tuple[Fidelity, list[Row], str]:
    try:
        runner = runner_of(artifact, manifest, registry)
    except ImportError as error:
        return "none", [], f"executing it here needs {error.name}, not installed"
    if runner.fidelity == "none":
        return "none", [], "the exporter has no runner for it on this machine"
    return runner.fidelity, prove(artifact, runner, golden), ""


def _read(
    artifact: Artifact, golden: Mapping[str, Golden], given: Mapping[str, Any], outputs: Path | None
) -> tuple[Fidelity, list[Row], str]:
    """Read outputs that the device computed, in the file's own arithmetic."""
    found = given.get(artifact.component)
    if found is None:
        return "none", [], f"{outputs} has no outputs of it"
    missing = [
        f"{artifact.component}/{name}/{output}"
        for name, each in golden.items()
        for output in each.outputs
        if output not in found.get(name, {})
    ]
    if missing:
        mend = "Run every input set of golden/ on the device and save all outputs"
        raise UserError(f"tensors are missing: {', '.join(missing)}", where=str(outputs), mend=mend)
    rows = judged(artifact, golden, found, artifact.precision)
    refuse(artifact, rows)
    return "production", rows, ""


def _split(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Group by component, set and output."""
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for key, value in tensors.items():
        parts = key.split("/")
        if len(parts) != 3:
            raise UserError(f"a tensor is called {key!r}", mend="Name tensors <component>/<input set>/<output>")
        found.setdefault(parts[0], {}).setdefault(parts[1], {})[parts[2]] = value
    return found


def _rewrite(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest again, with what is now known."""
    manifest.pop("stamp", None)
    manifest.update(summarise(manifest["artifacts"]))
    write_json(folder / "manifest.json", sealed(manifest))
