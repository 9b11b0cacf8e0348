"""DiT step latency on this CPU: eager torch, torch.compile, ONNX Runtime, ExecuTorch with XNNPACK; server and pruned.

    python benchmarks/runtimes.py [--layers 6] [--heads 8] [--rounds 15] [--threads 1]

Both models are in memory at once and every round runs each runtime on each model in turn, so that a busy machine slows
all alike. Times are processor time of this process (all threads); a cell is the median over rounds, a ratio the median
of the rounds' ratios. The pruned model keeps 2/3 of the blocks, 1/2 of the heads, 3/4 of the FFN channels. Agreement
with eager torch is checked first. The last line is one JSON object. Exit status 1 where a runtime disagrees (under 60
dB), or where the pruned model is not faster on one of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "exporting"))

import targets

from dit_compress.export.compare import compare
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from dit_compress.model.denoiser import Denoiser

RUNTIMES = ("eager", "compile", "onnxruntime", "xnnpack")
AGREE_DB = 60.0


def main() -> int:
    """Print a table of milliseconds and ratios, and one JSON object."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    server = denoiser_of(arguments)
    models = {"server": server, "pruned": targets.pruned(server)}
    calls: dict[tuple[str, str], Callable[[], np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, denoiser in models.items():
            for runtime in arguments.runtimes:
                calls[model, runtime] = prepared(denoiser, runtime, tuple(arguments.size), Path(folder) / model)
        agree = {f"{model} {runtime}": agreement(calls, model, runtime) for model, runtime in calls}
        times = measured(calls, arguments.rounds)
    figures: dict[str, Any] = {
        "parameters": {name: count(each) for name, each in models.items()},
        "ms": {},
        "ratio": {},
    }
    print(f"{'runtime':14}{'server ms':>11}{'pruned ms':>11}{'ratio':>8}{'worst dB':>10}")
    for runtime in arguments.runtimes:
        pairs = list(zip(times["server", runtime], times["pruned", runtime], strict=True))
        cells = [statistics.median(1000 * pair[place] for pair in pairs) for place in (0, 1)]
        ratio = statistics.median(before / after for before, after in pairs)
        worst = min(agree[f"{model} {runtime}"] for model in models)
        print(f"{runtime:14}{cells[0]:11.1f}{cells[1]:11.1f}{ratio:8.2f}{worst:10.1f}")
        figures["ms"][runtime] = {"server": round(cells[0], 1), "pruned": round(cells[1], 1)}
        figures["ratio"][runtime] = round(ratio, 3)
    met = min(agree.values()) >= AGREE_DB and min(figures["ratio"].values()) > 1
    print(json.dumps({**figures, "worst_agreement_db": round(min(agree.values()), 1), "threads": arguments.threads}))
    return 0 if met else 1


def parsed() -> argparse.Namespace:
    """Parse the sizes and counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=3, default=[3, 8, 8], help="latent cells T H W")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    return parser.parse_args()


def denoiser_of(arguments: argparse.Namespace) -> Denoiser:
    """Make the larger model, with random weights."""
    sizes = {"layers": arguments.layers, "heads": arguments.heads, "head_width": arguments.head_width, "channels": 64}
    torch.manual_seed(0)
    maker = make_part("model", {"use": "video_dit", "preset": "tiny", **sizes}, installed()).build()
    return maker.denoiser(targets.settle(maker.create()).requires_grad_(requires_grad=False))


def count(denoiser: Denoiser) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in denoiser.module.parameters())


def prepared(denoiser: Denoiser, runtime: str, size: tuple[int, int, int], folder: Path) -> Callable[[], np.ndarray]:
    """Prepare one call of the model in a runtime; converting and compiling is done before."""
    component = targets.step_of(denoiser, size)
    if runtime in ("eager", "compile"):
        module = component.module if runtime == "eager" else torch.compile(component.module)
        given = tuple(component.inputs.values())

        @torch.no_grad()
        def call() -> np.ndarray:
            return module(*given).numpy()

        return call
    folder.mkdir(exist_ok=True)
    exporter = targets.exporter({"onnxruntime": "onnx", "xnnpack": "executorch"}[runtime])
    runner = exporter.runner(exporter.lower(component, exporter.profile, folder)[0])
    inputs = {name: value.numpy() for name, value in component.inputs.items()}
    return lambda: runner(inputs, "float32")["velocity"]


def agreement(calls: dict[tuple[str, str], Any], model: str, runtime: str) -> float:
    """Return the decibels against eager torch."""
    return (
        compare(calls[model, RUNTIMES[0]](), calls[model, runtime]()).psnr_db
        if (model, RUNTIMES[0]) in calls
        else 300.0
    )


def measured(calls: dict[tuple[str, str], Any], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Measure the processor seconds of every call, round by round."""
    for call in calls.values():
        call()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            start = time.process_time()
            call()
            times[key].append(time.process_time() - start)
    return times


if __name__ == "__main__":
    sys.exit(main())
