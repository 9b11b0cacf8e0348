"""Harmed files and hostile arguments, some hundreds of each by a fixed seed: one message, status 2, nothing left."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fuzz
import hostile

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow(60)
CASES = {
    "recipe": 150, "header": 1500, "manifest": 1500, "arguments": 50, "check": 10, "config": 12, "weights": 6, "package": 20,
    "captions": 300, "bundle": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("kind", CASES)
def test_whatever_is_wrong_is_one_message(kind: str, material: Path, tmp_path: Path) -> None:
    found = fuzz.fuzz(material, tmp_path, CASES[kind], 0, (kind,))
    assert found.failed == {"tracebacks": [], "hangs": [], "left_behind": []}
    assert set(found.statuses) <= {"0", "1", "2"}
    assert found.statuses["2"] > CASES[kind] / 10
    assert found.statuses.total() == CASES[kind]


def test_a_fault_is_found(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three: an exception, work without end, a file left after a refusal."""

    def raises(case: fuzz.Case) -> int:
        raise KeyError("x")

    def endless(case: fuzz.Case) -> int:
        while True:
            pass

    def leaves(case: fuzz.Case) -> int:
        (case.out / "left").write_text("")
        return 2

    monkeypatch.setattr(fuzz, "CPU_LIMIT_S", 0.1)
    monkeypatch.setattr(fuzz, "KINDS", {"a": (raises, 1), "b": (endless, 1), "c": (leaves, 1)})
    seen = {kind: fuzz.fuzz(material, tmp_path, 1, 0, (kind,)).as_data() for kind in "abc"}
    counts = [(each["tracebacks"], each["hangs"], each["left_behind"]) for each in seen.values()]
    assert counts == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
