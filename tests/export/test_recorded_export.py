"""Export of a module that no plugin knows, by one recorded call."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dit_compress
from dit_compress.core.errors import UserError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 64), nn.Linear(64, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(F.layer_norm(x, (d,))).reshape(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, -1))
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    """Takes a step as a whole number, text in a dict, and a guidance that it never looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.clock = nn.Linear(4, 24), nn.Linear(24, 4), nn.Embedding(10, 24)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor, step: Tensor, cond: dict[str, Tensor], guidance: Tensor | None = None) -> Any:
        x = self.enter(x) + self.clock(step)[:, None] + cond["text"].mean(1, keepdim=True)
        for block in self.blocks:
            x = block(x)
        return {"sample": self.leave(x)}


def made(dtype: torch.dtype = torch.float32) -> tuple[Model, Any]:
    torch.manual_seed(0)
    module = Model().to(dtype).eval()
    with dit_compress.record(module) as call:
        text = {"text": torch.randn(1, 5, 24, dtype=dtype)}
        module(torch.randn(1, 6, 4, dtype=dtype), torch.tensor([3]), text, guidance=torch.ones(1, dtype=dtype))
    return module, call


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pruned_module_becomes_onnx_with_proof(tmp_path: Path, dtype: torch.dtype) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module, call = made(dtype)
    dit_compress.prune(module, call=call, remove={"block": 1, "head": 1}, keep={"ffn": 0.5})
    with pytest.warns(UserWarning, match="^input 'guidance' is left out: the module does not use it$"):
        report = dit_compress.export(module, call=call, target="onnx", out=tmp_path / "files")
    assert report["passed"]
    assert report["left_out"] == ["guidance"]
    assert {row["input_set"] for row in report["rows"]} >= {"typical", "zero", "huge"}
    manifest = json.loads((tmp_path / "files" / "manifest.json").read_text())
    (artifact,) = manifest["artifacts"]
    assert [entry["name"] for entry in artifact["inputs"]] == ["x", "step", "cond_text"]
    assert [entry["dtype"] for entry in artifact["inputs"]] == ["float32", "int32", "float32"]
    assert manifest["exporter"] == {"plugin": "onnx", "options": {}}
    session = onnxruntime.InferenceSession(tmp_path / "files" / artifact["path"])
    given = {
        "x": call.args[0].float().numpy(),
        "step": np.array([3], np.int32),
        "cond_text": call.args[2]["text"].float().numpy(),
    }
    (found,) = session.run(None, given)
    expected = call.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor).replay(module.float())
    assert np.allclose(found, expected["sample"].numpy(), atol=1e-5)


def test_it_is_verified_like_any_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dit_compress.cli import app as cli

    module, call = made()
    with pytest.warns(UserWarning, match="guidance"):
        dit_compress.export(module, call=call, target="onnx", out=tmp_path / "files")
    monkeypatch.setattr(sys, "argv", ["dit-compress", "verify", str(tmp_path / "files")])
    status = 0
    try:
        cli.main()
    except SystemExit as left:
        status = int(left.code or 0)
    assert status == 0, capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:input 'guidance'")
def test_it_becomes_core_ml(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    module, call = made()
    report = dit_compress.export(module, call=call, target="coreml", out=tmp_path / "files")
    assert report["passed"]
    assert next((tmp_path / "files").glob("model*")).name.startswith("model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "onxn"}, "unknown export plugin 'onxn'. Did you mean 'onnx'"),
        ({"target": "diffusers"}, "the exporter 'diffusers' writes no single component"),
        ({"target": "onnx", "precision": "int3"}, "precision"),
    ],
)
def test_what_can_not_be_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    module, call = made()
    with pytest.raises(UserError, match=message):
        dit_compress.export(module, call=call, out=tmp_path / "files", **options)
    assert list(tmp_path.iterdir()) == []
