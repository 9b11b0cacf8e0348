"""A package on disk, read without torch: manifest, checksums, artifacts, and who can execute them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress import SCHEMA, __version__
from dit_compress.errors import UserError
from dit_compress.export.types import FIDELITIES, Artifact
from dit_compress.files import read_json, sha256_file
from dit_compress.hooks import load_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dit_compress.export.types import Runner
    from dit_compress.plugins import Registry

UNVERIFIED = "UNVERIFIED"
_AGAIN = "Copy the package again, or export it anew"
_KEYS = ("artifacts", "load_order", "fidelity", "passed", "files")
_ENTRY = ("component", "kind", "precision", "path", "files", "golden", "fidelity")


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json``, refused where it is not one or is too new.

    Raises:
        UserError: as above.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError("no exported package here (manifest.json is missing)", where=str(folder))
    manifest, where = read_json(path), str(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise UserError("not a manifest: 'schema' is missing", where=where)
    if manifest["schema"] > SCHEMA:
        what = f"written with schema {manifest['schema']}; this toolkit ({__version__}) reads up to {SCHEMA}"
        raise UserError(what, where=where, mend="Upgrade dit-compress")
    missing = [key for key in _KEYS if key not in manifest]
    missing += [f"artifacts: {key}" for entry in manifest.get("artifacts", ()) for key in _ENTRY if key not in entry]
    if missing:
        raise UserError(f"not a whole manifest: {', '.join(missing)} missing", where=where, mend=_AGAIN)
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Every file as it was written, or one UserError that names all that are not."""
    problems = []
    listed = [*manifest["files"], *(file for entry in manifest["artifacts"] for file in entry["files"])]
    root = folder.resolve()
    for file in listed:
        path = folder / file["path"]
        if not path.resolve().is_relative_to(root):
            problems.append(UserError("the manifest names a file outside its folder", where=str(path)))
        elif not path.is_file():
            problems.append(UserError("the file is missing", where=str(path), mend=_AGAIN))
        elif sha256_file(path) != file["sha256"]:
            problems.append(UserError("the checksum differs from the one written", where=str(path), mend=_AGAIN))
    if problems:
        raise UserError.join(problems)


def artifact_of(folder: Path, entry: Mapping[str, Any]) -> Artifact:
    """An artifact as its exporter wrote it."""
    details, bits = entry.get("details", {}), entry.get("weight_bits", 16)
    return Artifact(
        folder / entry["path"], entry["component"], entry["kind"], entry["precision"], details, weight_bits=bits
    )


def runner_of(artifact: Artifact, manifest: Mapping[str, Any], registry: Registry) -> Runner:
    """What executes an artifact on this machine.

    Raises:
        UserError: the exporter is not installed, or refuses the file.
        ImportError: what executes it here needs a package that is not installed.
    """
    exporter = manifest.get("exporter")
    if not exporter:
        raise UserError("the manifest does not say which exporter wrote it", mend="Give the outputs with --outputs")
    plugin = registry.get("export", exporter["plugin"])
    made = load_object(plugin.load)(plugin.options(**exporter["options"]))
    return made.runner(artifact)


def summarise(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``passed`` and ``fidelity`` of a package: those of its weakest artifact."""
    weakest = min((entry["fidelity"] for entry in entries), key=FIDELITIES.index, default="none")
    rows = [row for entry in entries for row in entry["proof"]]
    passed = weakest != "none" and all(row["verdict"] == "passed" for row in rows)
    return {"passed": passed, "fidelity": weakest, **({"stamp": UNVERIFIED} if weakest == "none" else {})}
