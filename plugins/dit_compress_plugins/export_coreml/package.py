"""Write a ``.mlpackage`` whose bytes depend on the model only.

coremltools stores the day of the conversion in the metadata, random identifiers in ``Manifest.json``
and maps in the order of a hash. Equal models shall have equal checksums, so all three are made fixed.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from dit_compress.core.files import disk_errors

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = uuid.UUID("5a0a3c3c-6d3f-5c1e-9b53-0d0a5f3f7c11")
"""The namespace of the identifiers in a package's manifest."""
DATE = "com.github.apple.coremltools.conversion_date"
DEBUG_FILE = "executorch_debug_handle_mapping.json"


def save_package(model: Any, path: Path) -> None:
    """Save and make deterministic."""
    with disk_errors(path):
        model.save(str(path))
        fix_bytes(path)


def fix_bytes(path: Path) -> None:
    """Make a saved package's bytes a function of its model."""
    with disk_errors(path):
        (path / DEBUG_FILE).unlink(missing_ok=True)
        rewrite_specification(path / "Data" / "com.apple.CoreML" / "model.mlmodel")
        rewrite_manifest(path / "Manifest.json")


def rewrite_specification(path: Path) -> None:
    """Drop the date, write maps in the order of their keys."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    spec.description.metadata.userDefined.pop(DATE, None)
    path.write_bytes(spec.SerializeToString(deterministic=True))


def rewrite_manifest(path: Path) -> None:
    """Take identifiers out of the paths they stand for."""
    manifest = json.loads(path.read_text("utf-8"))
    names = {old: str(uuid.uuid5(NAMESPACE, entry["path"])) for old, entry in manifest["itemInfoEntries"].items()}
    entries = {names[old]: entry for old, entry in manifest["itemInfoEntries"].items()}
    manifest["itemInfoEntries"] = dict(sorted(entries.items()))
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    path.write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
