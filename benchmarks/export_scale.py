"""A 0.9B DiT step to fp16 Core ML: seconds and peak memory.

    python benchmarks/export_scale.py [--layers 20] [--heads 20] [--ffn 6144] [--size 7 12 16]

The paper's mobile DiT (20 blocks, 20 heads × 64, hidden 2048, FFN 6144; 966M parameters by our count) with random
weights at 1,344 tokens. Counted: check, conversion, splitting under the phone's limit of a file, saving; not the
proof. Peak memory is that of the whole process, weights in float32 included. The last
line is one JSON object. Exit status 1 above 150 s or 10 GiB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "exporting"))

import targets

from dit_compress.export import check_components
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part

GOALS = {"seconds": 150.0, "peak_rss_gib": 10.0}


def main() -> int:
    """Measure, and print two figures."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    sizes = {"layers": arguments.layers, "heads": arguments.heads, "cross_heads": arguments.heads}
    torch.manual_seed(0)
    given = {"use": "video_dit", "preset": "2b", "hidden": 2048, "ffn": arguments.ffn, **sizes}
    maker = make_part("model", given, installed()).build()
    module = maker.create().eval().requires_grad_(requires_grad=False)
    count = sum(parameter.numel() for parameter in module.parameters())
    component = targets.step_of(maker.denoiser(module), tuple(arguments.size))
    exporter = targets.exporter("coreml", precision="float16")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        check_components(exporter, [component], exporter.profile)
        checked = time.perf_counter() - start
        artifact = exporter.lower(component, exporter.profile, Path(folder))[0]
        seconds = time.perf_counter() - start
        files = [path.stat().st_size for path in artifact.path.rglob("*") if path.is_file()]
    figures = {
        "seconds": round(seconds, 1),
        "peak_rss_gib": round(targets.peak_gib(), 2),
        "check_seconds": round(checked, 1),
        "parameters": count,
        "bytes": sum(files),
        "largest_file_bytes": max(files),
        "chunks": len(artifact.details.get("chunks", [0])),
        "threads": arguments.threads,
    }
    met = all(figures[name] <= goal for name, goal in GOALS.items())
    for name, goal in GOALS.items():
        print(f"{'met   ' if figures[name] <= goal else 'MISSED'} {name} {figures[name]}, at most {goal}")
    print(json.dumps(figures))
    return 0 if met else 1


def parsed() -> argparse.Namespace:
    """Parse the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--ffn", type=int, default=6144)
    parser.add_argument("--size", type=int, nargs=3, default=[7, 12, 16], help="latent cells T H W")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
