"""Networks that no file can hold, through the command line: refused with place and mend before anything is paid for.

Packages that were harmed (a changed byte, a newer manifest, a golden tensor that does not match) are in ``test_verify.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from test_ahead import RECIPE, device
from test_verify import command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow(12)

pytest.importorskip("coremltools")
pytest.importorskip("executorch")
torch.set_num_threads(1)

ODD = """\
import torch
from torch import nn

from dit_compress.hooks import Plugin, hookimpl
from dit_compress_plugins.model_video_dit import VideoDiTOptions
from dit_compress_plugins.model_video_dit.adapter import VideoDiTModel


class Odd(nn.Module):
    def forward(self, x):
        return {compute}


class OddModel(VideoDiTModel):
    @staticmethod
    def from_config(config):
        module = VideoDiTModel.from_config(config)
        module.norm_out = nn.Sequential(module.norm_out, Odd())
        return module


@hookimpl
def model():
    return Plugin(name="odd", options=VideoDiTOptions, load="odd:OddModel")
"""
CASES = {
    "control flow on values": (
        "x * 2 if x.sum() > 0 else x",
        "use: coreml",
        "component dit_step, component dit_step, Odd.forward: torch.export can't trace it",
        "Make control flow and shapes independent of values",
    ),
    "an operator the target lacks": (
        "torch.special.bessel_j0(x)",
        "use: coreml",
        "component dit_step, denoiser.module.norm_out.1: aten.special_bessel_j0: coremltools has no translation of it",
        "Write it with operators that Core ML has",
    ),
    "a weight over the limit of a file": (
        None,
        "use: executorch, device: {device}",
        "component dit_step, dit_step: weights of 0 MiB, a file may have 0 MiB",
        "Prune more, or choose a smaller precision",
    ),
    "a size that does not divide": (
        None,
        "use: coreml, sizes: [[9, 64, 96], [10, 64, 64], [9, 70, 64]]",
        "10 frames are not 1 + 8·k. Take 9 or 17 frames",
        "70×64 pixels can't be divided by the ratio 32×32",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_no_file_can_hold_is_refused_before_anything_is_paid_for(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, export, message, mend = CASES[case]
    chip = device(tmp_path, max_file_bytes=1000)
    (tmp_path / "odd.py").write_text(ODD.format(compute=compute or "x"))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(model="odd" if compute else "video_dit", export=export.format(device=chip)))
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    words = ("--plugin", tmp_path / "odd.py") if compute else ()
    status, printed = command(capsys, monkeypatch, "run", recipe, *words)
    assert status == 2, printed
    assert f"{recipe}:10: " in printed
    assert message in printed
    assert mend in printed
    assert "Traceback" not in printed
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"]
