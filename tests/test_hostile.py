"""Harmed files and hostile arguments, ten thousand by a fixed seed: one message, status 2, nothing left."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fuzz
import hostile

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow(25)
CASES = {
    "recipe": 250, "header": 2500, "manifest": 2000, "captions": 2000, "shards": 1000, "record": 1250, "pruning": 700,
    "arguments": 100, "check": 20, "config": 14, "weights": 6, "package": 40, "bundle": 120,
}  # fmt: skip
"""Ten thousand; most are readers that commands call, for a whole command costs some hundred times as much."""


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


def test_every_kind_has_its_cases() -> None:
    assert CASES.keys() == fuzz.KINDS.keys()
    assert sum(CASES.values()) == 10_000


def test_a_fault_is_found(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them: an exception, work without end, a file left after a refusal, one left beside what was read."""

    def raises(case: fuzz.Case) -> int:
        raise KeyError("x")

    def endless(case: fuzz.Case) -> int:
        while True:
            pass

    def leaves(case: fuzz.Case) -> int:
        (case.out / "left").write_text("")
        return 2

    def strays(case: fuzz.Case) -> int:
        folder = case.harmed("clips", {"captions.jsonl": b""})
        assert sorted(item.name for item in folder.iterdir()) == ["a.mp4", "b.mp4", "captions.jsonl"]
        (folder / "new").mkdir()
        (folder / "new" / "stray").write_text("")
        return 0

    monkeypatch.setattr(fuzz, "CPU_LIMIT_S", 0.1)
    monkeypatch.setattr(fuzz, "KINDS", {"a": (raises, 1), "b": (endless, 1), "c": (leaves, 1), "d": (strays, 1)})
    seen = {kind: fuzz.fuzz(material, tmp_path, 2, 0, (kind,)).as_data() for kind in "abcd"}
    counts = [(each["tracebacks"], each["hangs"], each["left_behind"]) for each in seen.values()]
    assert counts == [(2, 0, 0), (0, 2, 0), (0, 0, 2), (0, 0, 2)]
    assert (material / "clips" / "captions.jsonl").read_bytes() != b""
