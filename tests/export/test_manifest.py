"""The models of the manifest: what they refuse, in which words; and the JSON Schema that comes of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jsonschema
import pytest

from dit_compress.export.manifest import faults, manifest_schema, required

SHA256 = "a" * 64
TENSOR = {"name": "x", "shape": [1], "dtype": "float32"}
FILE = {"path": "a.onnx", "bytes": 1, "sha256": SHA256}
ARTIFACT = {
    "component": "dit_step", "kind": "onnx", "precision": "float32", "weight_bits": 32, "path": "a.onnx", "bytes": 1,
    "sha256": SHA256, "files": [FILE], "inputs": [TENSOR], "outputs": [TENSOR], "fidelity": "production", "proof": [],
    "golden": "golden/dit_step.safetensors", "details": {}, "headroom": [],
}  # fmt: skip
PART: dict[str, Any] = {
    "schema": 1, "written_by": "x", "passed": True, "fidelity": "none", "artifacts": [ARTIFACT],
    "load_order": ["dit_step"], "files": [FILE],
}  # fmt: skip
ROPE = {"where": "constants of dit_step", "inputs": [], "file": "rope.safetensors"}


def test_a_part_of_a_manifest_has_no_faults() -> None:
    """``verify`` asks for less than an app."""
    assert list(faults(PART)) == []
    assert {"sigmas", "rope", "licence"} <= set(required()) - PART.keys()
    assert "stamp" not in required()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"frame_rule": "1 + 8*k"}, "frame_rule: should be an object, not '1 + 8*k'"),
        ({"files": [FILE, 7]}, "files[1]: should be an object, not 7"),
        ({"files": [{**FILE, "path": "../x"}]}, "files[0].path: a path out of the folder"),
        ({"files": [{**FILE, "sha256": "x"}]}, "files[0].sha256: should match pattern '^[0-9a-f]{64}$', not 'x'"),
        ({"text": {"tensors": {}}}, "text: 'where' is a required property"),
        ({"text": {"where": "device", "tensors": {}}}, "text: 'tokenizer' is a required property"),
        ({"text": {"where": "host", "tensors": {}, "encoder": "T5"}}, "text: 'padding' is a required property"),
        ({"rope": ROPE}, "rope: 'sha256' is a required property"),
        ({"more": 1}, "$: 'more' is none of its keys"),
        ({"stamp": None}, "stamp: should be 'UNVERIFIED', not None"),
        ({"artifacts": [{**ARTIFACT, "bytes": True}]}, "artifacts[0].bytes: should be a valid integer, not True"),
        ({"artifacts": []}, "artifacts: should have at least 1 item after validation, not 0"),
        ({"sigmas": [2, 0]}, "sigmas[0]: should be less than or equal to 1, not 2"),
    ],
)
def test_a_fault_has_its_place(change: dict[str, Any], fault: str) -> None:
    """The JSON Schema refuses what the models refuse."""
    assert list(faults({**PART, **change})) == [fault]
    schema = {**manifest_schema(), "required": []}
    jsonschema.validate(PART, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**PART, **change}, schema)


def test_no_torch_is_needed() -> None:
    code = "import sys, dit_compress.export.manifest as m; m.manifest_schema(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
