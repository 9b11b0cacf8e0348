"""The full-size server model (2B, 40 guided steps) against the pruned one (4 steps), random weights: times faster.

    python benchmarks/server_to_mobile.py --device cuda          # the paper's sizes, bf16, whole sampling loops
    python benchmarks/server_to_mobile.py --video 9 128 128      # one step of each on a CPU, times the number of steps

Server: 28 blocks, 32 heads, FFN 8192, guidance as one doubled batch, 40 steps. Mobile: 8 blocks, 12 heads and a quarter
of the FFN removed, no guidance, 4 steps. "End to end" adds one decode by this toolkit's VAE (8x32x32, the widths of
recipes/mobile_video.yaml) to each; the text encoder is left out, its weights are not here. Beside it the paper's
Table 1 (A100, 121×576×1024, with costs that it does not itemise) and, for the token counts of the four VAE ratios,
its Table 3.

The last line is one JSON object. There is no goal to miss: exit status 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from typing import Any

VIDEO = (121, 576, 1024)
SMALL_VIDEO = (9, 128, 128)
"""Frames, height, width: the paper's, and what a CPU does in minutes."""
RATIOS = ("4x16x16", "4x32x32", "8x32x32", "8x64x64")
PAPER_TABLE_3_MS = {"4x16x16": 7900.0, "4x32x32": 920.0, "8x32x32": 380.0, "8x64x64": 90.0}
"""A100, milliseconds a step."""
PAPER_TABLE_1_FPS = {"server": 6.4, "mobile": 151.3}
LEVELS = {"block": {"remove": 8}, "head": {"remove": 12}, "ffn": {"keep": 0.75}}
VAE = {"use": "video_vae", "ratio": "8x32x32", "channels": 128, "widths": [128, 256, 512, 512], "blocks": 4}
STEPS = {"server": 40, "mobile": 4}
GUIDANCE = {"server": 4.0, "mobile": 1.0}
TEXT_LENGTH = 128


def denoisers(device: str, dtype: Any) -> dict[str, Any]:
    """Make server and mobile with random weights; the mobile one is the server's compacted, equal counts per block."""
    from dit_compress.model.cut import compact
    from dit_compress.plugin.registry import installed
    from dit_compress.recipe import make_part
    from dit_compress.structure.empty import empty_weights

    found = {}
    for name in STEPS:
        maker = make_part("model", {"use": "video_dit", "preset": "2b"}, installed()).build()
        with empty_weights():
            denoiser = maker.denoiser(maker.create())
        if name == "mobile":
            levels = {
                key: make_part("granularity", {"use": key, **value}, installed()) for key, value in LEVELS.items()
            }
            axes = [
                (part.build(), axis) for part in levels.values() for axis in part.build().axes(denoiser.structure())
            ]
            kept = {axis.name: tuple(range(level.keep(axis))) for level, axis in axes}
            compact(denoiser, [axis for _, axis in axes], kept)
        found[name] = randomised(denoiser, device, dtype)
    return found


def randomised(module: Any, device: str, dtype: Any) -> Any:
    """Give a module of the meta device small random weights."""
    import torch

    module = module.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.02)
    return module


def decoder(device: str, dtype: Any) -> Any:
    """Make the VAE with random weights."""
    from dit_compress.model.spec import Spec
    from dit_compress.plugin.registry import installed
    from dit_compress.recipe import make_part

    component = make_part("latent", VAE, installed()).build().plan(Spec()).need_latent()
    return component.loader().from_config(component.config).to(device=device, dtype=dtype).eval()


def decoding_seconds(device: str, dtype: Any, size: tuple[int, int, int], runs: int) -> float:
    """Measure the seconds to decode one latent."""
    import torch

    vae = decoder(device, dtype)
    latent = torch.randn(1, vae.channels, *size, device=device, dtype=dtype)
    return seconds_of(lambda: vae.decode(latent), runs)


def latent_size(video: tuple[int, int, int], ratio: str) -> tuple[int, int, int]:
    """Return the cells of a video."""
    from dit_compress.model.spec import latent_size as cells

    time, height, width = map(int, ratio.split("x"))
    return cells(video, (time, height, width))


def seconds_of(call: Any, runs: int) -> float:
    """Return the median seconds after a warm-up."""
    from dit_compress.measure.latency import timed

    timed(call)
    return statistics.median(timed(call) for _ in range(runs))


def sampling_seconds(denoiser: Any, name: str, size: tuple[int, int, int], *, num_steps: int, runs: int) -> float:
    """Measure the seconds of ``num_steps`` Euler steps, guided for the server."""
    from dit_compress.model.flow import Flow, euler

    noise, _, cond = denoiser.example(1, size, text_length=TEXT_LENGTH)
    sigmas = Flow().sigmas(num_steps)
    return seconds_of(lambda: euler(denoiser, noise, cond, sigmas, GUIDANCE[name]), runs)


def whole(
    models: dict[str, Any], size: tuple[int, int, int], decode: float, *, loops: bool, runs: int
) -> dict[str, float]:
    """Measure the seconds per video by part, and the ratios."""
    found = {}
    for name, steps in STEPS.items():
        taken = steps if loops else 1
        seconds = sampling_seconds(models[name], name, size, num_steps=taken, runs=runs)
        found[f"{name}_dit_seconds"] = seconds * steps / taken
        print(f"{name:7} {found[f'{name}_dit_seconds']:10.3f} s in the DiT ({steps} steps), {decode:.3f} s to decode")
    dit = found["server_dit_seconds"] / found["mobile_dit_seconds"]
    ends = {name: found[f"{name}_dit_seconds"] + decode for name in STEPS}
    return {**found, "decode_seconds": decode, "ratio_dit": dit, "ratio_end_to_end": ends["server"] / ends["mobile"]}


def by_ratio(mobile: Any, video: tuple[int, int, int], runs: int) -> dict[str, Any]:
    """Measure one mobile step at the token counts of Table 3's four VAE ratios, beside the paper's milliseconds."""
    rows = {}
    for ratio in RATIOS:
        size = latent_size(video, ratio)
        milliseconds = 1e3 * sampling_seconds(mobile, "mobile", size, num_steps=1, runs=runs)
        rows[ratio] = {"tokens": mobile.tokens(size), "ms": milliseconds, "paper_ms": PAPER_TABLE_3_MS[ratio]}
    for row in rows.values():
        row["relative"] = row["ms"] / rows["8x32x32"]["ms"]
        row["paper_relative"] = row["paper_ms"] / PAPER_TABLE_3_MS["8x32x32"]
    for ratio, row in rows.items():
        print(
            f"{ratio:8} {row['tokens']:7,} tokens {row['ms']:10.1f} ms a step ({row['relative']:.2f} of 8x32x32); "
            f"the paper {row['paper_ms']:.0f} ms ({row['paper_relative']:.2f})"
        )
    return rows


def main() -> int:
    """Measure and print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--video", type=int, nargs=3, help="frames, height, width; the paper's on cuda, 9 128 128 else")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    cpu = given.device == "cpu"
    video = tuple(given.video or (SMALL_VIDEO if cpu else VIDEO))
    size = latent_size(video, "8x32x32")
    torch.manual_seed(0)
    with torch.no_grad():
        decode = decoding_seconds(given.device, torch.bfloat16, size, given.runs)
        models = denoisers(given.device, torch.bfloat16)
        found: dict[str, Any] = {"video": list(video), "tokens": models["server"].tokens(size)}
        found |= {f"{name}_params": sum(p.numel() for p in model.parameters()) for name, model in models.items()}
        found |= whole(models, size, decode, loops=not cpu, runs=given.runs)
        found["table_3"] = by_ratio(models["mobile"], video, given.runs)
    found["paper_ratio"] = PAPER_TABLE_1_FPS["mobile"] / PAPER_TABLE_1_FPS["server"]
    print(f"DiT only {found['ratio_dit']:.1f}×, end to end {found['ratio_end_to_end']:.1f}×, ", end="")
    print(f"the paper's Table 1 {found['paper_ratio']:.1f}×")
    found["device"] = torch.cuda.get_device_name() if given.device.startswith("cuda") else platform.machine()
    print(json.dumps(_rounded(found)))
    return 0


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
