"""``dit-compress verify``: on saved inputs, without torch; raised fidelity, damaged packages, a device's outputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import here
from flips import silent_flips
from safetensors.numpy import load_file, save_file
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.core.files import sealed, sha256_file, write_json
from dit_compress.export import Artifact, Component, Profile, export_components
from dit_compress.export.folder import read_manifest
from dit_compress.export.verifying import verify_folder
from dit_compress.plugin.registry import use
from dit_compress_plugins.export_onnx import ONNXOptions
from dit_compress_plugins.export_onnx.exporter import ONNXExport

pytest.importorskip("onnxruntime")
torch.set_num_threads(1)

WITHOUT_TORCH = """\
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers", "onnxscript"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)


sys.meta_path.insert(0, Blocked())
from dit_compress.cli.app import main
main()
"""


def component() -> Component:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.RMSNorm(16), nn.Linear(16, 8)).eval()
    return Component("toy", module, {"x": torch.randn(3, 8)}, ("y",), varied=("x",))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of one ONNX file."""
    use()
    folder, exporter = tmp_path_factory.mktemp("package") / "files", ONNXExport(ONNXOptions())
    about = {"exporter": {"plugin": "onnx", "options": {"precision": "float32"}}}
    assert export_components(exporter, [component()], exporter.profile, folder, about)["passed"]
    return folder


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may harm."""
    return Path(shutil.copytree(made, tmp_path / "files"))


class Unproven:
    """Writes a file that nothing here can execute."""

    def check(self, component: Component, profile: Profile) -> list[Any]:
        return []

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        path = folder / f"{component.name}.chip"
        path.write_bytes(b"for a chip that is elsewhere")
        return [Artifact(path, component.name, "chip", profile.precision)]

    def runner(self, artifact: Artifact) -> Any:
        class Nothing:
            fidelity, arithmetics = "none", ()

        return Nothing()


@pytest.fixture
def unproven(tmp_path: Path) -> Path:
    profile = Profile("chip", precision="float16")
    assert not export_components(Unproven(), [component()], profile, tmp_path / "chip")["passed"]
    return tmp_path / "chip"


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: Any) -> tuple[int, str]:
    status, out, err = here(capsys, monkeypatch, *words)
    return status, out + err


def test_it_needs_neither_torch_nor_the_bundle(package: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WITHOUT_TORCH, "verify", str(package)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "fidelity of this proof: production; recorded: production" in ran.stdout
    rows = [line.split() for line in ran.stdout.splitlines() if line.lstrip().startswith("toy")]
    assert {row[3] for row in rows} == {"typical", "zero", "tiny", "huge"}
    assert {row[6] for row in rows} == {"passed"}


def test_what_is_recorded_is_raised_and_never_lowered(package: Path) -> None:
    data = manifest_of(package)
    data["artifacts"][0].update(fidelity="interpreter", stamp="UNVERIFIED")
    write_json(package / "manifest.json", sealed({**data, "fidelity": "interpreter"}))
    found = verify_folder(package, use())
    assert (found.recorded, found.passed) == (("interpreter", "production"), True)
    after = manifest_of(package)
    assert (after["fidelity"], after["passed"], after["artifacts"][0]["fidelity"]) == ("production", True, "production")
    assert verify_folder(package, use()).recorded == ("production", "production")


def changed_byte(folder: Path) -> None:
    path = folder / "toy.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_golden(folder: Path) -> None:
    """A golden tensor that does not match, with a checksum that does."""
    path = folder / "golden" / "toy.safetensors"
    tensors = load_file(path)
    tensors["tiny/outputs/y"] = tensors["tiny/outputs/y"] + 1
    save_file(tensors, path)
    data = manifest_of(folder)
    for file in data["files"]:
        if file["path"] == "golden/toy.safetensors":
            file["sha256"] = sha256_file(path)
    write_json(folder / "manifest.json", sealed(data))


def another_number(folder: Path) -> None:
    data = manifest_of(folder)
    data["artifacts"][0]["proof"][0]["relative_l2"] = 0.5
    write_json(folder / "manifest.json", data)


def newer(folder: Path) -> None:
    write_json(folder / "manifest.json", {**manifest_of(folder), "schema": 99})


def cut_golden(folder: Path) -> None:
    path = folder / "golden" / "toy.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def outside(folder: Path) -> None:
    data = manifest_of(folder)
    data["files"].append({"path": "../../etc/passwd", "bytes": 1, "sha256": "0" * 64})
    write_json(folder / "manifest.json", data)


def test_every_flipped_bit_of_the_manifest_is_seen(package: Path) -> None:
    assert silent_flips(package / "manifest.json", lambda: read_manifest(package)) == []


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (changed_byte, "toy.onnx: the checksum differs from the one written. Copy the package again"),
        (cut_golden, "golden/toy.safetensors: the checksum differs from the one written."),
        (other_golden, "component toy: the onnx file computes something else: "),
        (
            another_number,
            "manifest.json: the checksum of its entries differs from the one written. Copy the package again",
        ),
        (newer, "manifest.json: written with schema 99; this toolkit ("),
        (outside, "manifest.json: files[1].path: a path out of the folder. Copy the package again"),
        (lambda folder: (folder / "toy.onnx").unlink(), "toy.onnx: the file is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "no exported package here (manifest.json is missing)"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: not valid JSON"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": 1}'), "not a whole manifest: artifacts"),
    ],
)
def test_a_damaged_package_is_refused_and_stays_as_it_is(
    harm: Any, message: str, package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    harm(package)
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    status, printed = command(capsys, monkeypatch, "verify", package)
    assert status == 2
    assert message in printed
    assert "Traceback" not in printed
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before


def test_all_damaged_files_are_named_together(package: Path) -> None:
    changed_byte(package)
    cut_golden(package)
    with pytest.raises(UserError) as raised:
        verify_folder(package, use())
    assert len(raised.value.problems) == 2


def test_unverified_is_stamped_and_fails_unless_allowed(
    unproven: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = manifest_of(unproven)
    assert (data["stamp"], data["artifacts"][0]["stamp"], data["passed"]) == ("UNVERIFIED", "UNVERIFIED", False)
    outputs = unproven.with_name("empty.safetensors")
    save_file({"other/typical/y": np.zeros(1, np.float32)}, outputs)
    status, printed = command(capsys, monkeypatch, "verify", unproven, "--outputs", outputs)
    assert status == 1
    assert "toy: not executed" in printed
    assert "UNVERIFIED" in printed
    status, _ = command(capsys, monkeypatch, "verify", unproven, "--outputs", outputs, "--allow-unverified")
    assert status == 0
    assert manifest_of(unproven)["fidelity"] == "none"


def device_outputs(folder: Path, error: float = 0.0) -> Path:
    """What a phone would send back."""
    golden = load_file(folder / "golden" / "toy.safetensors")
    found = {
        f"toy/{key.replace('/outputs/', '/')}": (value * (1 + error)).astype(np.float32)
        for key, value in golden.items()
        if "/outputs/" in key
    }
    save_file(found, folder.with_name("device.safetensors"))
    return folder.with_name("device.safetensors")


def test_outputs_of_a_device_are_a_production_proof(unproven: Path) -> None:
    found = verify_folder(unproven, use(), device_outputs(unproven, error=1e-4))
    assert found.recorded == ("none", "production")
    assert {(row.arithmetic, row.gate_db, row.verdict) for row in found.rows} == {("float16", 50.0, "passed")}
    after = manifest_of(unproven)
    assert (after["passed"], after["fidelity"]) == (True, "production")
    assert "stamp" not in after
    assert "stamp" not in after["artifacts"][0]


def test_wrong_or_missing_outputs_of_a_device_are_refused(unproven: Path) -> None:
    before = manifest_of(unproven)
    with pytest.raises(UserError, match="the chip file computes something else"):
        verify_folder(unproven, use(), device_outputs(unproven, error=0.5))
    path = device_outputs(unproven)
    tensors = load_file(path)
    tensors.pop("toy/zero/y")
    save_file(tensors, path)
    with pytest.raises(UserError, match="tensors are missing: toy/zero/y"):
        verify_folder(unproven, use(), path)
    save_file({"y": np.zeros(1, np.float32)}, path)
    with pytest.raises(UserError, match="a tensor is called 'y'. Name tensors"):
        verify_folder(unproven, use(), path)
    assert manifest_of(unproven) == before
