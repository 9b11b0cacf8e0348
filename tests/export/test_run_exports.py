"""``dit-compress run`` with an export: what nothing executed, or what is below its gate, is no success."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from command import forks
from test_phone import bundle_in
from test_verify import command

from dit_compress.plugin.registry import use
from dit_compress.run import pipeline

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("onnxruntime")
torch.set_num_threads(1)

CHIP = """\
from dit_compress.hooks import Options, Plugin, hookimpl
from dit_compress_plugins.export_onnx import ONNXOptions
from dit_compress_plugins.export_onnx.exporter import ONNXExport


class ChipOptions(ONNXOptions):
    executed: bool = True


class ChipExport(ONNXExport):
    def runner(self, artifact):
        return Chip(super().runner(artifact)) if self.options.executed else Nothing()


class Nothing:
    fidelity, arithmetics = "none", ()


class Chip:
    fidelity, arithmetics = "reference", ("float32",)

    def __init__(self, sound):
        self.sound = sound

    def __call__(self, inputs, arithmetic):
        return {name: value * 1.002 for name, value in self.sound(inputs, arithmetic).items()}


@hookimpl
def export():
    return Plugin(name="chip", options=ChipOptions, load="chip:ChipExport")
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    use()
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    bundle_in(path, 1.0)
    return path


@pytest.mark.parametrize(
    ("executed", "said", "statuses"),
    [
        (False, "phone: UNVERIFIED. Nothing executed its files; run dit-compress verify where something can", (1, 0)),
        (True, "proofs are below their gates; 5", (1, 1)),
    ],
)
def test_what_is_not_proven_is_no_success(
    executed: bool, said: str, statuses: tuple[int, int], bundle: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """``--allow-unverified`` is for files that nothing here can execute, not for numbers that are off."""
    monkeypatch.setattr(pipeline, "subprocess", forks())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chip.py").write_text(CHIP)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nsteps:\n  - export: {{use: chip, executed: {str(executed).lower()}}}\n    name: phone\n"
        f"    input: {bundle}\n"
    )
    words = ("run", recipe, "--plugin", tmp_path / "chip.py")
    for more, wanted in zip(((), ("--allow-unverified",)), statuses, strict=True):
        status, printed = command(capsys, monkeypatch, *words, *more)
        assert status == wanted, printed
        assert said in printed, printed
    if executed:
        status, printed = command(capsys, monkeypatch, "verify", "runs/r/steps/phone/files", *words[2:])
        assert status == 1
        assert said in printed
