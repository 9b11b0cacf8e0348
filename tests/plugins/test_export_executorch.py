"""ExecuTorch: what XNNPACK frees when it has packed it must have no other reader."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.export import Component, export_components
from dit_compress.testing.exporters import small

pytest.importorskip("executorch")

from dit_compress_plugins.export_executorch import ExecuTorchOptions
from dit_compress_plugins.export_executorch.convert import open_attention, own_weights
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
    traced = component().program
    before = readers(traced)
    found = readers(own_weights(traced))
    assert before == readers(traced), "the traced program serves other exporters too"
    assert before["p_module_linear_weight"] == {"linear", "slice", "permute"}
    assert found["p_module_linear_weight"] == found["p_module_linear_bias"] == {"linear"}
    assert found["p_module_linear_weight_unpacked"] == {"slice"}
    assert found["permute_computed"] == {"linear"}
    assert found["p_module_linear_bias_unpacked"] == {"mul"}


class Computed(nn.Module):
    """Weights that a network makes of its parameters: XNNPACK packs constants alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(8, 8), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        pixel = F.conv2d(x, self.linear.weight[..., None, None] * self.scale[:, None, None], self.linear.bias + 1)
        return F.conv2d(pixel, self.linear.weight[..., None, None]) + F.conv2d(x, kernel[..., 0])


def test_weights_that_are_computed_are_constants(tmp_path: Path) -> None:
    """One that an input decides stays as it is: a portable kernel runs it."""
    torch.manual_seed(0)
    inputs = {"x": torch.randn(1, 8, 5, 5), "kernel": torch.randn(8, 8, 1, 1, 1)}
    made = Component("computed", Computed().eval(), inputs, ("y",), varied=("x",))
    program = own_weights(made.program)
    kinds = [node.args[1].op for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert sorted(kinds) == ["call_function", "placeholder", "placeholder"]
    exporter = ExecuTorchExport(ExecuTorchOptions())
    (artifact,) = exporter.lower(made, exporter.profile, tmp_path)
    assert artifact.details["portable"] == ["aten.convolution.default", "aten.select_copy.int"]
    found = exporter.runner(artifact)({name: value.numpy() for name, value in inputs.items()}, "float32")["y"]
    with torch.no_grad():
        np.testing.assert_allclose(found, made.module(**inputs).numpy(), atol=1e-5)


def test_weights_that_are_only_packed_stay_as_they_are() -> None:
    traced = component(tied=False).program
    assert own_weights(traced) is open_attention(traced) is traced


class Attends(nn.Module):
    """Attention without a mask, with one that is added, and a causal one."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(x, x, x)
        y = F.scaled_dot_product_attention(y, x, x, attn_mask=torch.where(keep > 0, 0.0, -1e4)[:, None, None])
        return F.scaled_dot_product_attention(y, x, x, is_causal=True, scale=0.5)


def test_attention_without_a_causal_mask_is_xnnpacks(tmp_path: Path) -> None:
    """Zeros where all keys are masked by -inf, six operators over all scores, are the causal one's alone."""
    torch.manual_seed(0)
    inputs = {"x": torch.randn(1, 2, 6, 8), "keep": torch.tensor([[1.0, 1, 1, 0, 0, 1]])}
    made = Component("attends", Attends().eval(), inputs, ("y",), varied=("x",))
    opened = open_attention(made.program)
    targets = [str(node.target) for node in opened.graph.nodes]
    assert targets.count("aten.softmax.int") == 2
    assert targets.count("aten.scaled_dot_product_attention.default") == 1
    exporter = ExecuTorchExport(ExecuTorchOptions())
    (artifact,) = exporter.lower(made, exporter.profile, tmp_path)
    found = exporter.runner(artifact)({name: value.numpy() for name, value in inputs.items()}, "float32")["y"]
    np.testing.assert_allclose(found, made.module(**inputs).numpy(), atol=1e-5)


def test_the_file_with_shared_weights_runs(tmp_path: Path) -> None:
    made, exporter = component(), ExecuTorchExport(ExecuTorchOptions())
    assert exporter.check(made, exporter.profile) == []
    runner = exporter.runner(exporter.lower(made, exporter.profile, tmp_path)[0])
    x = made.inputs["x"]
    for _ in range(2):
        found = runner({"x": x.numpy()}, "float32")["y"]
        with torch.no_grad():
            np.testing.assert_allclose(found, made.module(x).numpy(), atol=2e-6)


def test_half_precision_halves_the_file_and_reaches_its_gates(tmp_path: Path) -> None:
    """Weights and arithmetic of XNNPACK in float16; what the app gives and gets stays float32."""
    sizes, dtypes = {}, {}
    for precision in ("float32", "float16"):
        exporter = ExecuTorchExport(ExecuTorchOptions(precision=precision))
        torch.manual_seed(0)
        inputs = {"x": torch.randn(4, 128)}
        made = Component("wide", nn.Linear(128, 128).eval(), inputs, ("y",), varied=("x",))
        report = export_components(exporter, [made, small()], exporter.profile, tmp_path / precision)
        assert report["passed"], report["rows"]
        assert {(row["arithmetic"], row["gate_db"]) for row in report["rows"]} == {
            (precision, {"float32": 70.0, "float16": 50.0}[precision])
        }
        manifest = json.loads((tmp_path / precision / "manifest.json").read_text())
        entry = manifest["artifacts"][0]
        assert (entry["precision"], entry["weight_bits"]) == (precision, {"float32": 32, "float16": 16}[precision])
        dtypes[precision] = [each["dtype"] for each in (*entry["inputs"], *entry["outputs"])]
        sizes[precision] = entry["bytes"]
    assert dtypes == {key: ["float32", "float32"] for key in dtypes}
    assert 0.95 < (sizes["float32"] - sizes["float16"]) / (2 * 128 * 128) < 1.05, "two bytes a weight"
    halves = min(row["psnr_db"] for row in report["rows"])
    assert 55 < halves < 90, "whole arithmetic under another name would be above 90"


@pytest.mark.parametrize(("precision", "least"), [("float32", 120), ("float16", 55)])
def test_convolutions_over_three_axes_run_over_frames_side_by_side(precision: str, least: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv3d(8, 3, 3, padding=(0, 1, 1))).eval()
    made = Component("vae_decoder", layers, {"latent": torch.randn(1, 4, 5, 4, 4)}, ("video",), varied=("latent",))
    exporter = ExecuTorchExport(ExecuTorchOptions(precision=precision))
    report = export_components(exporter, [made], exporter.profile, tmp_path / "out")
    assert report["passed"]
    assert min(row["psnr_db"] for row in report["rows"]) > least
    details = json.loads((tmp_path / "out" / "manifest.json").read_text())["artifacts"][0]["details"]
    assert not [name for name in details["portable"] if "convolution" in name]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_decoder_with_gaps_in_convolutions_over_three_axes_is_refused_before_lowering(
    precision: str, tmp_path: Path
) -> None:
    layers = nn.Sequential(nn.Conv3d(4, 4, 3, padding=2, dilation=2), nn.SiLU()).eval()
    made = Component("vae_decoder", layers, {"latent": torch.randn(1, 4, 3, 4, 4)}, ("video",), varied=("latent",))
    exporter = ExecuTorchExport(ExecuTorchOptions(precision=precision))
    with pytest.raises(UserError, match=r"component vae_decoder, 0: aten\.convolution: a convolution over three axes"):
        export_components(exporter, [made], exporter.profile, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
