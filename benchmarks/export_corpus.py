"""The corpus of silent failures through every exporter: right, caught (and by whom), or missed?

    python benchmarks/export_corpus.py [--targets coreml onnx openvino]

``openvino`` is the exporter of a stranger's package (``tests/third_party``): its column is there where it is named.

Each case of ``dit_compress.testing.corpus`` looks harmless and goes wrong on some target: rank 8, a mask of -1e9, a
zero row under RMSNorm, a write into the input … A case ends as *right* (the file agrees with its source on inputs that
the proof never saw), as caught by ``check``, ``lower`` or the proof (``verify``), or as *missed*: the export passed and
the file computes something else.

The last line is one JSON object; its figures are summed over the exporters. Exit status 1 where a case is missed or
an exporter crashes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "exporting"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "third_party" / "openvino"))

import targets

from dit_compress.testing.corpus import CORPUS, examine

OPTIONS = {
    "coreml": ("coreml", {"precision": "float16"}),
    "coreai": ("coreai", {"precision": "float32"}),
    "onnx": ("onnx", {"precision": "float16"}),
    "onnx float32": ("onnx", {"precision": "float32"}),
    "executorch": ("executorch", {}),
}


def exporter(target: str) -> Any:
    """Return the exporter of a column."""
    if target == "openvino":
        from dit_openvino import OpenVINOOptions
        from dit_openvino.exporter import OpenVINOExport

        return OpenVINOExport(OpenVINOOptions())
    plugin, options = OPTIONS[target]
    return targets.exporter(plugin, **options)


def main() -> int:
    """Print a row per case, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(OPTIONS), choices=[*OPTIONS, "openvino"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = list(arguments.targets)
    print(f"{'case':20}" + "".join(f"{name:>14}" for name in columns))
    stages: Counter[str] = Counter()
    messages: list[str] = []
    failures = 0
    for case in CORPUS:
        row = []
        for target in columns:
            with tempfile.TemporaryDirectory() as folder:
                found = examine(case, exporter(target), Path(folder) / "out")
            row.append(found.stage)
            stages[found.stage] += 1
            if found.stage in ("missed", "crashed"):
                failures += 1
            if found.stage not in ("right", "check"):
                first = next(iter(found.message.splitlines()), f"{found.psnr_db} dB on fresh inputs")
                messages.append(f"{case.name} × {target}: {found.stage}: {first}")
        print(f"{case.name:20}" + "".join(f"{stage:>14}" for stage in row), flush=True)
    for message in messages:
        print(message)
    figures = {
        "cases": len(CORPUS) * len(columns),
        "right": stages["right"],
        "caught_by_check": stages["check"],
        "caught_by_lower": stages["lower"],
        "caught_by_verify": stages["verify"],
        "missed": stages["missed"],
        "crashed": stages["crashed"],
    }
    print(json.dumps(figures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
