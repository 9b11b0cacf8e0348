"""ONNX files: halves around precise paths, deterministic bytes, damaged files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.export import Artifact, Component, Profile, export_components
from dit_compress.export.compare import compare
from dit_compress_plugins.export_onnx import ONNXOptions

if TYPE_CHECKING:
    from pathlib import Path

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from dit_compress_plugins.export_onnx.convert import convert, save  # noqa: E402 - after importorskip
from dit_compress_plugins.export_onnx.exporter import ONNXExport  # noqa: E402 - after importorskip
from dit_compress_plugins.export_onnx.half import weight_bytes  # noqa: E402 - after importorskip

torch.set_num_threads(1)


class Timed(nn.Module):
    """A linear, modulated by sinusoids of sigma; RMSNorm; a mask of −4e4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time, self.linear, self.norm = nn.Linear(16, 8), nn.Linear(8, 8), nn.RMSNorm(8)

    def forward(self, x_BSD: Tensor, sigma_B: Tensor, mask_BS: Tensor) -> Tensor:
        angle = sigma_B[:, None] * 1000.0 * torch.exp(-torch.arange(8.0))
        shift = self.time(torch.cat([angle.cos(), angle.sin()], -1))[:, None]
        y = self.norm(self.linear(x_BSD) + shift)
        bias = torch.zeros_like(mask_BS).masked_fill(mask_BS < 0.5, -torch.inf)[:, None, None]
        y_B1SD = y[:, None]
        return nn.functional.scaled_dot_product_attention(y_B1SD, y_B1SD, y_B1SD, attn_mask=bias)[:, 0]


def timed() -> Component:
    torch.manual_seed(1)
    mask_BS = torch.tensor([[1.0] * 5, [1, 1, 1, 0, 0]])
    inputs = {"x": torch.randn(2, 5, 8), "sigma": torch.tensor([0.9137, 0.31]), "mask": mask_BS}
    return Component("timed", Timed().eval(), inputs, ("y",), varied=("x",), precise=("sigma",))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_executed_at_the_gate(precision: str, tmp_path: Path) -> None:
    exporter = ONNXExport(ONNXOptions(precision=precision))
    profile = Profile("test", precision=precision, input_sets=("typical", "zero", "tiny", "huge"))
    report = export_components(exporter, [timed()], profile, tmp_path / "out")
    assert report["passed"], report["rows"]
    assert min(row["psnr_db"] for row in report["rows"]) > {"float32": 100, "float16": 55}[precision]


def test_half_model_has_half_weights_and_single_interface() -> None:
    model = convert(timed(), "float16", 20)
    assert all(each.data_type != onnx.TensorProto.FLOAT for each in model.graph.initializer if len(each.dims) == 2)
    values = [*model.graph.input, *model.graph.output]
    assert [value.name for value in values] == ["x", "sigma", "mask", "y"]
    assert {value.type.tensor_type.elem_type for value in values} == {onnx.TensorProto.FLOAT}


def test_equal_models_give_equal_bytes_without_source_paths(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(convert(timed(), "float16", 20), tmp_path / f"{name}.onnx")
    written = (tmp_path / "a.onnx").read_bytes()
    assert written == (tmp_path / "b.onnx").read_bytes()
    assert b".py" not in written


def test_large_models_keep_their_weights_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dit_compress_plugins.export_onnx.convert.PROTOBUF_LIMIT", 1)
    component = Component("wide", nn.Linear(64, 64).eval(), {"x": torch.randn(2, 64)}, ("y",), varied=("x",))
    exporter = ONNXExport(ONNXOptions())
    report = export_components(exporter, [component], exporter.profile, tmp_path / "out")
    assert report["passed"]
    assert report["bytes"] > 64 * 64 * 4
    assert (tmp_path / "out" / "wide.onnx.data").stat().st_size >= 64 * 64 * 4


@pytest.mark.slow(30)
def test_a_model_above_two_gib_is_written(tmp_path: Path) -> None:
    """Protobuf can neither write such a model nor measure it. The weights lie beside it, to the last byte.

    In four tensors of equal zeros, but for the last value: memory for 2 GiB is what takes long here.
    """
    model, size = onnx.ModelProto(ir_version=9), 2**31 + 4096
    model.graph.name = "wide"
    zeros = bytes(size // 4)
    for name in ("first", "second", "third", "last"):
        weight = model.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=[len(zeros) // 4])
        weight.raw_data = zeros if name != "last" else zeros[:-4] + np.float32(7).tobytes()
    assert weight_bytes(model) == size
    save(model, tmp_path / "wide.onnx")
    assert (tmp_path / "wide.onnx").stat().st_size < 1000
    with (tmp_path / "wide.onnx.data").open("rb") as data:
        assert data.seek(-4, os.SEEK_END) == size - 4
        assert np.frombuffer(data.read(), np.float32) == 7
    (tmp_path / "wide.onnx.data").unlink()  # or pytest keeps three of them


def test_check_refuses_attention_that_onnx_lacks() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    exporter, inputs = ONNXExport(ONNXOptions()), {"x": torch.ones(2, 4, 8)}
    component = Component("flat", nn.Sequential(nn.Identity(), Flat()), inputs, ("y",), varied=("x",))
    found = exporter.check(component, exporter.profile)
    assert [(each.operator, each.path, each.severity) for each in found] == [
        ("aten.scaled_dot_product_attention", "1", "error")
    ]


class Root(nn.Module):
    """Something that ONNX can't say, and torch can't take apart."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.cholesky(x @ x.mT + torch.eye(4, device=x.device)) + torch.special.bessel_j0(x)


def test_check_names_operators_that_onnx_lacks() -> None:
    """Before lowering, with the module they stand in; a component without values will do."""
    exporter = ONNXExport(ONNXOptions())
    layers = nn.Sequential(nn.Linear(4, 4), Root()).to("meta")
    component = Component("root", layers, {"x": torch.empty(4, 4, device="meta")}, ("y",), varied=("x",))
    found = exporter.check(component, exporter.profile)
    assert {(each.path, each.severity, each.message) for each in found} == {
        ("1", "error", "torch has no translation of it to ONNX")
    }
    assert {each.operator for each in found} >= {"aten.linalg_cholesky_ex"}
    assert any("bessel" in each.operator for each in found)
    assert all(each.mend for each in found)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    exporter = ONNXExport(ONNXOptions())
    artifact = exporter.lower(timed(), exporter.profile, tmp_path)[0]
    artifact.path.write_bytes(artifact.path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"timed\.onnx: ONNX Runtime can't load it"):
        exporter.runner(artifact)


def test_a_file_with_other_weights_is_refused(tmp_path: Path) -> None:
    class Tampering(ONNXExport):
        def runner(self, artifact: Artifact):
            model = onnx.load(str(artifact.path))
            for each in model.graph.initializer:
                if len(each.dims) == 2:
                    values = onnx.numpy_helper.to_array(each).copy()
                    values[0] += 1
                    each.CopyFrom(onnx.numpy_helper.from_array(values, each.name))
            onnx.save(model, str(artifact.path))
            return super().runner(artifact)

    exporter = Tampering(ONNXOptions())
    with pytest.raises(UserError, match="computes something else"):
        export_components(exporter, [timed()], exporter.profile, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_come_back_by_name(tmp_path: Path) -> None:
    component, exporter = timed(), ONNXExport(ONNXOptions())
    runner = exporter.runner(exporter.lower(component, exporter.profile, tmp_path)[0])
    inputs = {name: value.numpy() for name, value in component.inputs.items()}
    found = runner(inputs, "float32")
    with torch.no_grad():
        wanted = component.module(*component.inputs.values()).numpy()
    assert list(found) == ["y"]
    assert found["y"].dtype == np.float32
    assert compare(wanted, found["y"]).psnr_db > 100
