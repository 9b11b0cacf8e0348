"""The measured speedup of the compacted model over the FLOPs it saved.

    python benchmarks/speedup.py [--rounds 9] [--hidden 1024] [--layers 4] [--device cpu]

A reference DiT is pruned by magnitude at the paper's proportions (2/7 of the blocks, 3/8 of the heads, 1/4 of the
FFN channels), and at each level alone. Speedup = time of a call before over after, median over paired calls, taken
in turn; FLOPs saved = FLOPs before over after, attention included, counted on the meta device. Their ratio is 1
where time follows FLOPs. On a CPU the time is the processor time of this process, so that other work on the
machine does not count. The last line is one JSON object. Exit status 1 where the ratio, for all levels together,
is below 0.95.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.model.cut import compact
from dit_compress.model.figures import count_flops
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.importance import magnitude, top

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dit_compress.model.denoiser import Denoiser

GOAL = 0.95
TEXT_LENGTH = 32
REMOVED = {"block": 2 / 7, "head": 3 / 8, "ffn": 1 / 4}
PLANS = {"tri-level": ("block", "head", "ffn"), "block": ("block",), "head": ("head",), "ffn": ("ffn",)}


def main() -> int:
    """Print a row per plan, and one JSON object."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    given = {"hidden": arguments.hidden, "heads": arguments.hidden // 64, "ffn": 4 * arguments.hidden}
    shape = {"preset": "small", "layers": arguments.layers, "head_width": 64, "text_width": 256, **given}
    maker = make_part("model", {"use": "video_dit", **shape, "channels": 64}, installed()).build()
    whole = maker.denoiser(maker.create().to(arguments.device)).eval()
    size = (arguments.tokens // 64, 8, 8)
    ratios = {}
    print(f"{'plan':12}{'FLOPs saved':>12}{'speedup':>10}{'ratio':>8}")
    for name, levels in PLANS.items():
        small = pruned(whole, {level: REMOVED[level] for level in levels})
        saved = flops(whole, size) / flops(small, size)
        speedup = faster(caller(whole, size), caller(small, size), arguments.rounds, arguments.device)
        ratios[name] = speedup / saved
        print(f"{name:12}{saved:12.3f}{speedup:10.3f}{ratios[name]:8.3f}")
    met = ratios["tri-level"] >= GOAL
    print(f"{'met   ' if met else 'MISSED'} speedup over FLOPs saved {ratios['tri-level']:.3f}, at least {GOAL}")
    each = {f"{name}_alone": round(value, 4) for name, value in ratios.items() if name != "tri-level"}
    sizes = {"hidden": arguments.hidden, "tokens": arguments.tokens, "device": arguments.device}
    print(json.dumps({"speedup_over_flops_saved": round(ratios["tri-level"], 4), **each, **sizes}))
    return 0 if met else 1


def parsed() -> argparse.Namespace:
    """Parse the sizes. At the defaults matrix products take nearly all of the time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 512")
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def pruned(whole: Denoiser, removed: Mapping[str, float]) -> Denoiser:
    """Return a compacted copy, the largest units kept."""
    small = copy.deepcopy(whole)
    structure = small.structure()
    axes = [axis for level in removed for axis in make_part("granularity", level, installed()).build().axes(structure)]
    counts = {axis.name: axis.units - round(removed[axis.level] * axis.units) for axis in axes}
    compact(small, axes, {axis.name: top(magnitude(small.module, axis), counts[axis.name]) for axis in axes})
    return small


def flops(denoiser: Denoiser, size: tuple[int, int, int]) -> int:
    """Count the FLOPs of one call."""
    return count_flops(copy.deepcopy(denoiser), size, TEXT_LENGTH)


def caller(denoiser: Denoiser, size: tuple[int, int, int]) -> Callable[[], Any]:
    """Make one call for one sample."""
    example = denoiser.example(1, size, text_length=TEXT_LENGTH)

    @torch.no_grad()
    def call() -> Any:
        return denoiser(*example)

    return call


def faster(before: Callable[[], Any], after: Callable[[], Any], rounds: int, device: str) -> float:
    """Return the median over rounds of time before over time after."""
    for call in (before, after):
        call()
    return statistics.median(timed(before, device) / timed(after, device) for _ in range(rounds))


def timed(call: Callable[[], Any], device: str) -> float:
    """Measure the seconds of a call: processor time on a CPU, until the device is done on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    sys.exit(main())
