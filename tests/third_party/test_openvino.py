"""A stranger's exporter of less than 150 lines passes the conformance kit, and its package is found.

One case of each kind of the corpus: ``benchmarks/export_corpus.py --targets openvino`` has all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_compress.plugin.registry import Registry
from dit_compress.plugin.sources import Source
from dit_compress.testing.corpus import CORPUS, Case
from dit_compress.testing.exporters import ExporterContract

pytestmark = pytest.mark.slow(15)

ONE_OF_EACH_KIND = (
    "conv3d",
    "mask_minus_inf",
    "half_overflow",
    "dynamic_shape",
    "shared_weights",
    "in_place_write",
    "complex_rope",
)
HERE = Path(__file__).parent / "openvino"
sys.path.insert(0, str(HERE))

pytest.importorskip("openvino")
torch.set_num_threads(1)


class TestOpenVINO(ExporterContract):
    @pytest.mark.parametrize(
        "case", [case for case in CORPUS if case.name in ONE_OF_EACH_KIND], ids=lambda case: case.name
    )
    def test_no_silent_failure(self, case: Case, tmp_path: Path) -> None:
        super().test_no_silent_failure(case, tmp_path)

    def exporter(self) -> Any:
        from dit_openvino import OpenVINOOptions
        from dit_openvino.exporter import OpenVINOExport

        return OpenVINOExport(OpenVINOOptions())


def test_it_is_found_like_any_plugin() -> None:
    import dit_openvino

    registry = Registry()
    registry.add([Source("export_openvino", "dit-openvino", "1.0", lambda: dit_openvino)])
    assert [(entry.kind, entry.plugin.name) for entry in registry.entries()] == [("export", "openvino")]
    assert registry.broken == []


def test_it_is_small_and_the_engine_does_not_know_it() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in HERE.rglob("*.py")) + len(
        (HERE / "pyproject.toml").read_text().splitlines()
    )
    assert lines <= 150
    engine = Path(__file__).parents[2] / "dit_compress"
    assert not [path for path in engine.rglob("*.py") if "openvino" in path.read_text().lower()]
