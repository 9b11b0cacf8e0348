"""Components × targets: does it convert, reload, execute, and agree?

    python benchmarks/exports.py [--targets coreml onnx] [--components "video_dit" "vae 8x32x32"]

Components: the DiT step of video_dit, of a pruned video_dit, of LTX and of Wan (tiny, random weights), the decoders of
video_vae and h3ae at four ratios, and what is made of either at 8x32x32, or of LTX's VAE (diffusers' class, fine-tuned
for a step: ``tuned-ltx``): a small decoder for a phone (``phone-vae``), its own with half of the channels
(``cut-vae``). Targets: Core ML, Core AI, ONNX, ExecuTorch, each in float32 and float16. Each cell goes through the
toolkit's own export: check, lower, reload from disk, execute, compare on typical, zero, tiny, huge and padded inputs.
A cell passes when every precision reaches its gates (70 dB in float32 arithmetic, 60 where weights are float16, 50 dB
in float16). Refused: by ``check``, before lowering, with a reason. Failed late: anything else.

The last line is one JSON object. Exit status 1 where a goal is missed: all DiT cells pass, all decoder cells on Core
ML, Core AI and ONNX pass; only ExecuTorch × decoder may be refused; nothing fails late.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).parent / "exporting"))

import targets

from dit_compress.core.errors import UserError
from dit_compress.export import check_components, export_components

if TYPE_CHECKING:
    from dit_compress.export import Component

OWN = tuple(f"{codec} {ratio}" for codec in targets.CODECS for ratio in targets.RATIOS)
COMPONENTS = (*targets.DITS, *OWN, *targets.DECODERS)


@dataclass
class Cell:
    """One component on one target."""

    component: str
    target: str
    outcome: str = "passed"
    decibel: dict[str, float] = field(default_factory=dict)
    size_bytes: int = 0
    seconds: float = 0.0
    fidelity: str = ""
    message: str = ""


def main() -> int:
    """Print a row per cell, and one JSON object."""
    arguments = parsed()
    torch.set_num_threads(1)
    columns = f"{'component':18}{'target':12}{'outcome':12}{'dB float32':>11}{'dB float16':>11}{'KiB':>8}{'s':>7}"
    print(f"{columns}  executed by")
    cells = []
    for name in arguments.components:
        component = targets.component(name)
        for target in arguments.targets:
            cells.append(examined(component, name, target))
            show(cells[-1])
    figures = {
        "cells": len(cells),
        "passed": sum(cell.outcome == "passed" for cell in cells),
        "refused": sum(cell.outcome == "refused" for cell in cells),
        "failed_late": sum(cell.outcome == "failed late" for cell in cells),
    }
    missed = [f"{cell.component} × {cell.target}" for cell in cells if not allowed(cell)]
    for each in missed:
        print(f"MISSED {each}")
    print(json.dumps(figures))
    return 1 if missed else 0


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(targets.TARGETS), choices=targets.TARGETS)
    parser.add_argument("--components", nargs="+", default=list(COMPONENTS), choices=COMPONENTS)
    return parser.parse_args()


def examined(component: Component, name: str, target: str) -> Cell:
    """Examine one cell, in every precision of its target."""
    cell, start = Cell(name, target), time.perf_counter()
    for precision in targets.TARGETS[target]:
        exporter = targets.exporter(target, precision=precision)
        try:
            check_components(exporter, [component], exporter.profile)
        except UserError as error:
            cell.outcome, cell.message = "refused", str(error).splitlines()[0]
            break
        except Exception as error:  # noqa: BLE001 - a crash is a row of the table
            cell.outcome, cell.message = "failed late", f"check crashed: {next(iter(str(error).splitlines()), '')}"
            break
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = export_components(exporter, [component], exporter.profile, Path(folder) / "out")
            except Exception as error:  # noqa: BLE001 - a failure is a row of the table
                cell.outcome, cell.message = "failed late", str(error).splitlines()[0]
                break
        worst: dict[str, float] = {}
        for row in report["rows"]:
            worst[row["arithmetic"]] = min(worst.get(row["arithmetic"], 300.0), row["psnr_db"])
        cell.decibel[precision] = worst[precision]
        cell.size_bytes, cell.fidelity = report["bytes"], report["fidelity"]
        if not report["passed"]:
            cell.outcome, cell.message = "failed late", f"below its gate in {precision}: {worst}"
    cell.seconds = time.perf_counter() - start
    return cell


def allowed(cell: Cell) -> bool:
    """Tell whether the goal leaves room for this outcome."""
    return cell.outcome == "passed" or (
        cell.outcome == "refused" and cell.target == "executorch" and not cell.component.startswith(targets.DITS)
    )


def show(cell: Cell) -> None:
    """Print a row, and the reason where it did not pass."""
    both = "".join(f"{cell.decibel.get(each, float('nan')):11.1f}" for each in ("float32", "float16"))
    row = f"{cell.component:18}{cell.target:12}{cell.outcome:12}{both}{cell.size_bytes / 1024:8.0f}{cell.seconds:7.1f}"
    print(f"{row}  {cell.fidelity}", flush=True)
    if cell.message:
        print(f"    {cell.message}")


if __name__ == "__main__":
    sys.exit(main())
