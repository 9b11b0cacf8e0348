"""ExecuTorch: what XNNPACK frees when it has packed it must have no other reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_compress.export import Component, trace

pytest.importorskip("executorch")

from dit_compress_plugins.export_executorch import ExecuTorchOptions
from dit_compress_plugins.export_executorch.convert import apart
from dit_compress_plugins.export_executorch.exporter import ExecuTorchExport

if TYPE_CHECKING:
    from pathlib import Path

torch.set_num_threads(1)


class Tied(nn.Module):
    """A linear whose weight and bias are used again: packed twice, and read as plain tensors."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.linear, self.tied = nn.Linear(32, 32), tied

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(F.gelu(self.linear(x)))
        return y + self.linear.weight[:16] * self.linear.bias + F.linear(x, self.linear.weight.T) if self.tied else y


def component(*, tied: bool = True) -> Component:
    torch.manual_seed(0)
    return Component("tied", Tied(tied=tied).eval(), {"x": torch.randn(2, 16, 32)}, ("y",), varied=("x",))


def readers(program: torch.export.ExportedProgram) -> dict[str, set[str]]:
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    return {node.name: {str(user.target).split(".")[1] for user in node.users} for node in placeholders}


def test_packed_weights_have_no_other_reader() -> None:
    """XNNPACK frees what it packed; the file of such a network ended the process (ExecuTorch 1.5.1)."""
    traced = trace(component())
    before = readers(traced)
    found = readers(apart(traced))
    assert before == readers(traced), "the traced program serves other exporters too"
    assert before["p_module_linear_weight"] == {"linear", "slice", "permute"}
    assert found["p_module_linear_weight"] == found["p_module_linear_bias"] == {"linear"}
    assert found["p_module_linear_weight_unpacked"] == {"slice", "permute"}
    assert found["p_module_linear_bias_unpacked"] == {"mul"}


def test_weights_that_are_only_packed_stay_as_they_are() -> None:
    traced = trace(component(tied=False))
    assert apart(traced) is traced


def test_the_file_with_shared_weights_runs(tmp_path: Path) -> None:
    made, exporter = component(), ExecuTorchExport(ExecuTorchOptions())
    assert exporter.check(made, exporter.profile) == []
    runner = exporter.runner(exporter.lower(made, exporter.profile, tmp_path)[0])
    x = made.inputs["x"]
    for _ in range(2):
        found = runner({"x": x.numpy()}, "float32")["y"]
        with torch.no_grad():
            np.testing.assert_allclose(found, made.module(x).numpy(), atol=2e-6)
