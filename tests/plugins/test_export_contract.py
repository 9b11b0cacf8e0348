"""Every built-in exporter against the kit that strangers get.

All of the corpus goes through Core ML, whose interpreter is ours, and through ONNX in halves; the others get one case
of each kind here, and all of them in ``benchmarks/export_corpus.py``, which fails where a case is missed or crashes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from dit_compress.testing.corpus import CORPUS, Case
from dit_compress.testing.exporters import ExporterContract
from dit_compress_plugins.export_coreai import CoreAIOptions
from dit_compress_plugins.export_coreml import CoreMLOptions
from dit_compress_plugins.export_executorch import ExecuTorchOptions
from dit_compress_plugins.export_onnx import ONNXOptions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow(40)
torch.set_num_threads(1)

ONE_OF_EACH_KIND = (
    "conv3d",
    "mask_minus_inf",
    "half_overflow",
    "dynamic_shape",
    "shared_weights",
    "in_place_write",
    "complex_rope",
)
few = pytest.mark.parametrize(
    "case", [case for case in CORPUS if case.name in ONE_OF_EACH_KIND], ids=lambda case: case.name
)


class OneOfEachKind(ExporterContract):
    """The kit with a few cases of the corpus."""

    @few
    def test_no_silent_failure(self, case: Case, tmp_path: Path) -> None:
        super().test_no_silent_failure(case, tmp_path)


class TestCoreML(ExporterContract):
    def exporter(self) -> Any:
        pytest.importorskip("coremltools")
        from dit_compress_plugins.export_coreml.exporter import CoreMLExport

        return CoreMLExport(CoreMLOptions())


class TestONNX(OneOfEachKind):
    def exporter(self) -> Any:
        pytest.importorskip("onnxruntime")
        from dit_compress_plugins.export_onnx.exporter import ONNXExport

        return ONNXExport(ONNXOptions())


class TestONNXHalf(ExporterContract):
    def exporter(self) -> Any:
        pytest.importorskip("onnxruntime")
        from dit_compress_plugins.export_onnx.exporter import ONNXExport

        return ONNXExport(ONNXOptions(precision="float16"))


class TestCoreAI(OneOfEachKind):
    def exporter(self) -> Any:
        pytest.importorskip("coreai_torch")
        from dit_compress_plugins.export_coreai.exporter import CoreAIExport

        return CoreAIExport(CoreAIOptions(precision="float32"))


class TestExecuTorch(OneOfEachKind):
    def exporter(self) -> Any:
        pytest.importorskip("executorch")
        from dit_compress_plugins.export_executorch.exporter import ExecuTorchExport

        return ExecuTorchExport(ExecuTorchOptions())
