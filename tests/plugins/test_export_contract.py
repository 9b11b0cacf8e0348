"""Every built-in exporter against the kit that strangers get."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_compress.testing.exporters import ExporterContract
from dit_compress_plugins.export_coreai import CoreAIOptions
from dit_compress_plugins.export_coreml import CoreMLOptions
from dit_compress_plugins.export_executorch import ExecuTorchOptions
from dit_compress_plugins.export_onnx import ONNXOptions

pytestmark = pytest.mark.slow(200)
torch.set_num_threads(1)


class TestCoreML(ExporterContract):
    def exporter(self) -> Any:
        pytest.importorskip("coremltools")
        from dit_compress_plugins.export_coreml.exporter import CoreMLExport

        return CoreMLExport(CoreMLOptions())


class TestONNX(ExporterContract):
    def exporter(self) -> Any:
        pytest.importorskip("onnxruntime")
        from dit_compress_plugins.export_onnx.exporter import ONNXExport

        return ONNXExport(ONNXOptions())


class TestONNXHalf(ExporterContract):
    def exporter(self) -> Any:
        pytest.importorskip("onnxruntime")
        from dit_compress_plugins.export_onnx.exporter import ONNXExport

        return ONNXExport(ONNXOptions(precision="float16"))


class TestCoreAI(ExporterContract):
    def exporter(self) -> Any:
        pytest.importorskip("coreai_torch")
        from dit_compress_plugins.export_coreai.exporter import CoreAIExport

        return CoreAIExport(CoreAIOptions(precision="float32"))


class TestExecuTorch(ExporterContract):
    def exporter(self) -> Any:
        pytest.importorskip("executorch")
        from dit_compress_plugins.export_executorch.exporter import ExecuTorchExport

        return ExecuTorchExport(ExecuTorchOptions())
