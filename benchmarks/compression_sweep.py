"""Weights of a Core ML DiT step in fewer bits: size against dB, from executed files.

    python benchmarks/compression_sweep.py [--layers 8] [--heads 8]

A video_dit (256 wide, random weights) as .mlpackage with fp16, int8, 6- and 4-bit palettes and int4 weights; each
file is reloaded and executed by the MIL interpreter in the file's own arithmetic, and compared with the float32 source
on every input set: dB on typical inputs, and on the worst set. Below its gate a file is marked, 10 dB below it ``run``
would refuse it. Trained weights were not measured.
The last line is one JSON object. Exit status 1 where fewer bits do not give a smaller file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "exporting"))

import targets

from dit_compress.export.base import size_of
from dit_compress.export.package import golden_of
from dit_compress.export.proof import judged
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part

STORED = (None, "int8", "palette6", "palette4", "int4")
SIZE = (3, 6, 6)


def main() -> int:
    """Print a row per way of storing, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    component = sweep_component(arguments.layers, arguments.heads)
    golden, _ = golden_of(component, targets.exporter("coreml").profile)
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'weights':10}{'MiB':>8}{'typical':>9}{'worst':>8}{'gate':>6}{'s':>7}  verdict")
    for stored in STORED:
        rows[stored or "float16"] = row = swept(component, stored, golden)
        print(
            f"{stored or 'float16':10}{row['bytes'] / 2**20:8.2f}{row['typical_db']:9.1f}{row['worst_db']:8.1f}"
            f"{row['gate_db']:6.0f}{row['seconds']:7.1f}  {row['verdict']}",
            flush=True,
        )
    sizes = [rows[name]["bytes"] for name in ("float16", "int8", "palette6", "palette4")]
    shrinking = all(before > after for before, after in itertools.pairwise(sizes)) and rows["int4"]["bytes"] < sizes[1]
    print(json.dumps({"parameters": sum(each.numel() for each in component.module.parameters()), **rows}))
    return 0 if shrinking else 1


def sweep_component(layers: int, heads: int) -> Any:
    """Return a DiT step whose matrices are large enough to be compressed."""
    torch.manual_seed(0)
    given = {"use": "video_dit", "preset": "small", "layers": layers, "heads": heads}
    maker = make_part("model", given, installed()).build()
    module = targets.settle(maker.create()).requires_grad_(requires_grad=False)
    return targets.step_of(maker.denoiser(module), SIZE)


def swept(component: Any, stored: str | None, golden: Any) -> dict[str, Any]:
    """Return size, dB and verdict of one way of storing the weights."""
    exporter, start = targets.exporter("coreml", weights=stored), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (artifact,) = exporter.lower(component, exporter.profile, Path(folder))
        runner = exporter.runner(artifact)
        found = {name: runner(each.inputs, "float16") for name, each in golden.items()}
        rows = judged(artifact, golden, found, "float16")
        size = size_of(artifact.path)
    decibels = {row.input_set: row.comparison.psnr_db for row in rows}
    verdicts = {row.verdict for row in rows}
    return {
        "bytes": size,
        "typical_db": round(decibels["typical"], 1),
        "worst_db": round(min(decibels.values()), 1),
        "gate_db": rows[0].gate_db,
        "seconds": round(time.perf_counter() - start, 1),
        "verdict": next(each for each in ("refused", "below", "passed") if each in verdicts),
    }


if __name__ == "__main__":
    sys.exit(main())
