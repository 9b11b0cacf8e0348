"""A package on disk, read without torch: manifest, checksums, artifacts, and who can execute them."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dit_compress.core.errors import UserError
from dit_compress.core.files import is_whole, read_json, sha256_file
from dit_compress.core.version import SCHEMA, __version__
from dit_compress.export.manifest import faults, required
from dit_compress.export.types import FIDELITIES, Artifact
from dit_compress.plugin.options import load_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dit_compress.export.types import Runner
    from dit_compress.plugin.registry import Registry

UNVERIFIED = "UNVERIFIED"
_AGAIN = "Copy the package again, or export it anew"
_KEYS = ("artifacts", "load_order", "fidelity", "passed", "files")
_MOST = 10
"""Faults of a manifest that are named."""


def read_manifest(folder: Path, *, whole: bool = False) -> dict[str, Any]:
    """Read ``manifest.json``; refuse it where it is none, is too new, or does not follow its schema.

    whole: what an app needs must be in it too, not only what a proof needs.

    Raises:
        UserError: as above; the faults together.
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
    wanted = required() if whole else _KEYS
    if missing := [key for key in wanted if key not in manifest]:
        what = f"not a whole manifest: {', '.join(missing)} missing"
        raise UserError(what, where=where, mend=_AGAIN)
    need_schema(manifest, where, _AGAIN)
    if not is_whole(manifest):
        raise UserError("the checksum of its entries differs from the one written", where=where, mend=_AGAIN)
    return manifest


def need_schema(manifest: Mapping[str, Any], where: str, mend: str) -> None:
    """Raise a UserError where the manifest departs from the schema, or no checksum covers a file it uses."""
    found = [*faults(manifest)] or [*_strays(manifest)]
    if found:
        raise UserError.join([UserError(fault, where=where, mend=mend) for fault in found[:_MOST]])


def _strays(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that the manifest uses, and no checksum covers."""
    other = {file["path"] for file in manifest["files"]}
    used = {f"artifacts[{place}].golden": each["golden"] for place, each in enumerate(manifest["artifacts"])}
    used |= {key: manifest[key]["file"] for key in ("sample", "rope") if "file" in manifest.get(key, {})}
    if tokenizer := manifest.get("text", {}).get("tokenizer"):
        used["text.tokenizer"] = f"{tokenizer['folder']}/{tokenizer['file']}"
    for where, path in used.items():
        if path not in other:
            yield f"{where}: {path} is not among 'files'"
    for place, entry in enumerate(manifest["artifacts"]):
        own = [PurePosixPath(file["path"]) for file in entry["files"]]
        if not any(PurePosixPath(entry["path"]) in (path, *path.parents[:-1]) for path in own):
            yield f"artifacts[{place}].path: {entry['path']} is not among its 'files'"


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise one UserError that names every file that is not as it was written."""
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
    """Return an artifact as its exporter wrote it."""
    details, bits = entry.get("details", {}), entry.get("weight_bits", 16)
    return Artifact(
        folder / entry["path"], entry["component"], entry["kind"], entry["precision"], details, weight_bits=bits
    )


def runner_of(artifact: Artifact, manifest: Mapping[str, Any], registry: Registry) -> Runner:
    """Return a runner that executes an artifact on this machine.

    Raises:
        UserError: the exporter is not installed, is of another version, or refuses the file.
        ImportError: what executes it here needs a package that is not installed.
    """
    exporter = manifest.get("exporter")
    if not exporter:
        raise UserError("the manifest does not say which exporter wrote it", mend="Give the outputs with --outputs")
    plugin = registry.get("export", exporter["plugin"])
    try:
        options = plugin.options(**exporter["options"])
    except ValidationError as error:
        named = ", ".join(sorted({".".join(map(str, each["loc"])) or "together" for each in error.errors()}))
        what = f"the installed exporter {plugin.name!r} does not take the options of the one that wrote it: {named}"
        raise UserError(what, where=str(artifact.path), mend="Install the version that wrote it") from error
    return load_object(plugin.load)(options).runner(artifact)


def below_gates(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how many rows of a proof missed their gates, and which is furthest below; nothing where all reached them."""
    low = [row for row in rows if row["verdict"] != "passed"]
    if not low:
        return ""
    worst = min(low, key=lambda row: row["psnr_db"] - row["gate_db"])
    where = f"{worst['component']}, {worst['input_set']} inputs, {worst['arithmetic']} arithmetic"
    seen = f"{worst['psnr_db']:.1f} of {worst['gate_db']:.0f} dB"
    return f"{len(low)} of {len(rows)} proofs are below their gates; {seen}: {where}"


def summarise(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``passed`` and ``fidelity`` of a package: those of its weakest artifact."""
    weakest = min((entry["fidelity"] for entry in entries), key=FIDELITIES.index, default="none")
    rows = [row for entry in entries for row in entry["proof"]]
    passed = weakest != "none" and all(row["verdict"] == "passed" for row in rows)
    return {"passed": passed, "fidelity": weakest, **({"stamp": UNVERIFIED} if weakest == "none" else {})}
