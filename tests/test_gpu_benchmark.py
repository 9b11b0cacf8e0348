"""``benchmarks/gpu.sh`` where there is no GPU: says so, goes through all of it at toy size, leaves a table."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
pytestmark = pytest.mark.slow(20)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would take ten minutes")
def test_the_dry_run_fills_the_table(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    ran = subprocess.run(
        ["sh", str(SCRIPT), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("no GPU here: a dry run on the CPU at toy size")
    head, *rows = [line for line in out.read_text().splitlines() if line.startswith("| ")]
    names = [cell.strip() for cell in head.strip("|").split("|")]
    table = [dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=True)) for row in rows]
    kinds = ["flow", "affine", "adversarial"]
    assert [row["what"] for row in table] == kinds * (len(table) // 3)
    options = list(dict.fromkeys(row["options"] for row in table))
    assert options == [
        "bf16", "deterministic: false", "checkpoint_activations", "images: 0.25", "muon_lr", "float32", "compile",
        "compile, deterministic: false", "compile, checkpoint_activations",
    ]  # fmt: skip
    assert all(float(row["s/step"]) > 0 and row.get("note", "–") == "–" for row in table)
    assert all("flash" in row["attention"] for row in table[:3])
    assert json.loads(ran.stdout.splitlines()[-1])["failed"] == 0
