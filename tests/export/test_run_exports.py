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

pytestmark = pytest.mark.slow(12)

torch.set_num_threads(1)

CHIP = """\
import torch

from dit_compress.export import Artifact, ExportOptions, ExportStep
from dit_compress.hooks import Plugin, hookimpl


class ChipOptions(ExportOptions):
    executed: bool = True


class ChipExport(ExportStep):
    def check(self, component, profile):
        return []

    def lower(self, component, profile, folder):
        path = folder / f"{component.name}.chip"
        torch.save((component.module, tuple(component.inputs), component.outputs), path)
        return [Artifact(path, component.name, "chip", "float32", weight_bits=32)]

    def runner(self, artifact):
        return Chip(artifact.path) if self.options.executed else Nothing()


class Nothing:
    fidelity, arithmetics = "none", ()


class Chip:
    fidelity, arithmetics = "reference", ("float32",)

    def __init__(self, path):
        self.module, self.inputs, self.outputs = torch.load(path, weights_only=False)

    @torch.no_grad()
    def __call__(self, inputs, arithmetic):
        found = self.module(*(torch.from_numpy(inputs[name].copy()) for name in self.inputs))
        found = found if isinstance(found, tuple) else (found,)
        # a little off
        return {name: (value * 1.002).numpy() for name, value in zip(self.outputs, found, strict=True)}


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
