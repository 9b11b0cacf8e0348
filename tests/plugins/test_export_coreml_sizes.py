"""``sizes``: several videos in one ``.mlpackage``, each size a function, each proven, weights stored once."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.export import Component, export_components
from dit_compress.export.compare import compare
from dit_compress.export.folder import artifact_of
from dit_compress.export.inputs import input_sets
from dit_compress_plugins.export_coreml import CoreMLOptions

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("coremltools")

from dit_compress_plugins.export_coreml.chunks import weight_bytes
from dit_compress_plugins.export_coreml.exporter import CoreMLExport

torch.set_num_threads(1)

OTHER = "video_9x64x96"
SHAPES = {"": (1, 4, 2, 2, 2), OTHER: (1, 4, 1, 2, 3)}


class Positions(nn.Module):
    """A table that depends on the size, as RoPE's, between two linears of 256 × 256."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(4, 256), nn.Linear(256, 4)
        self.layers = nn.ModuleList(nn.Linear(256, 256) for _ in range(2))

    def forward(self, latent_BCTHW: Tensor, text_BD: Tensor) -> Tensor:
        x_BSD = self.into(latent_BCTHW.flatten(2).transpose(1, 2))
        x_BSD = x_BSD * torch.cos(torch.arange(x_BSD.shape[1]) * 0.5)[:, None] + text_BD[:, None]
        for layer in self.layers:
            x_BSD = x_BSD + nn.functional.silu(layer(x_BSD))
        return self.out(x_BSD).transpose(1, 2).reshape(latent_BCTHW.shape)


def component() -> Component:
    torch.manual_seed(1)
    inputs = {"latent": torch.randn(SHAPES[""]), "text": torch.randn(1, 256)}
    made = Component("dit_step", Positions().eval(), inputs, ("velocity",), varied=("latent", "text"))
    return made.with_sizes({OTHER: torch.randn(SHAPES[OTHER])})


def exported(folder: Path, **options: Any) -> tuple[dict[str, Any], Any, Any]:
    """Report, artifact as it is read back, exporter."""
    exporter = CoreMLExport(CoreMLOptions(**options))
    report = export_components(exporter, [component()], exporter.profile, folder)
    entry = json.loads((folder / "manifest.json").read_text())["artifacts"][0]
    return report, artifact_of(folder, entry), exporter


def contents(folder: Path) -> dict[str, Any]:
    """Bytes of every file; of ``Manifest.json`` what it says: coremltools writes it anew where it loads a package."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return found | {"Manifest.json": json.loads(found["Manifest.json"])}


def test_every_size_is_proven_and_weights_are_stored_once(tmp_path: Path) -> None:
    report, artifact, exporter = exported(tmp_path / "both")
    assert report["passed"], report["rows"]
    sets = ["typical", "zero", "tiny", "huge"]
    assert {row["input_set"] for row in report["rows"]} == {*sets, *(f"{OTHER}-{name}" for name in sets)}
    assert artifact.details["functions"] == [
        {"name": name or "main", "inputs": {"latent": list(shape), "text": [1, 256]}} for name, shape in SHAPES.items()
    ]
    runner, source = exporter.runner(artifact), component()
    for shape in SHAPES.values():
        latent, text = torch.randn(shape), torch.randn(1, 256)
        found = runner({"latent": latent.numpy(), "text": text.numpy()}, "float32")["velocity"]
        with torch.no_grad():
            assert compare(source.module(latent, text).numpy(), found).psnr_db > 70
    alone = exporter.lower(replace(component(), sizes={}), exporter.profile, tmp_path)[0]
    assert "functions" not in alone.details
    assert weight_bytes(alone.path) <= weight_bytes(artifact.path) < 1.05 * weight_bytes(alone.path)
    (tmp_path / "again").mkdir()
    again = exporter.lower(component(), exporter.profile, tmp_path / "again")[0]
    assert contents(again.path) == contents(artifact.path)
    with pytest.raises(UserError, match=r"dit_step\.mlpackage: no function takes inputs of .*1, 4, 9, 2, 2"):
        runner({"latent": np.zeros((1, 4, 9, 2, 2), np.float32), "text": np.zeros((1, 256), np.float32)}, "float32")
    missing = replace(artifact, details={"functions": [{"name": "video_1x1x1", "inputs": {}}]})
    with pytest.raises(UserError, match=r"dit_step\.mlpackage: the package has no function video_1x1x1"):
        exporter.runner(missing)


def test_sizes_in_chunks_of_few_bits(tmp_path: Path) -> None:
    """Both chunks hold both functions, and int8 weights are still shared."""
    device = tmp_path / "small.json"
    device.write_text(json.dumps({"name": "small", "precision": "float16", "max_file_bytes": 120_000}))
    report, artifact, _ = exported(tmp_path / "out", weights="int8", device=str(device))
    assert report["passed"], report["rows"]
    assert artifact.details["chunks"] == ["1.mlpackage", "2.mlpackage"]
    assert all(weight_bytes(artifact.path / name) <= 120_000 for name in artifact.details["chunks"])
    assert {row["input_set"] for row in report["rows"]} >= {"typical", f"{OTHER}-typical"}


def test_the_other_size_is_scaled_too() -> None:
    made = input_sets(component(), ("typical", "huge"))
    assert list(made) == ["typical", "huge", f"{OTHER}-typical", f"{OTHER}-huge"]
    assert tuple(made[f"{OTHER}-huge"]["latent"].shape) == SHAPES[OTHER]
    torch.testing.assert_close(made[f"{OTHER}-huge"]["latent"], made[f"{OTHER}-typical"]["latent"] * 300)


def test_older_systems_have_no_functions() -> None:
    with pytest.raises(ValueError, match="several sizes in one file need iOS 18"):
        CoreMLOptions(sizes=((9, 64, 96),), minimum_os="iOS17")
