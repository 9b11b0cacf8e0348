"""The training loop against a hand-written minimal one: the same model, batches, loss and optimiser.

    python benchmarks/trainer_overhead.py [--pairs 9] [--steps 25] [--device cuda]

The minimal loop is what one would write in an afternoon: fused AdamW, clipping, a moving average, noise from
``torch.randn``; no roles, streams, checkpoints, curves. Both train in turn, in pairs, and the median of the pairs'
ratios counts (processor time on a CPU, wall time on a GPU). Memory: the most that tensors hold during a step, weights
and optimiser included. The last line is one JSON object; the exit status is 1 where throughput is below 0.97 or memory
above 1.03 of the minimal loop's.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.data.samples import Samples
from dit_compress.measure.memory import LiveBytes
from dit_compress.model.flow import Flow, interpolate, velocity
from dit_compress.model.text import Captions
from dit_compress.plugin.registry import installed, use
from dit_compress.recipe import make_part
from dit_compress.step.context import Context
from dit_compress.step.world import World
from dit_compress.train.loop import fit
from dit_compress_plugins.distill_flow import FlowOptions
from dit_compress_plugins.distill_flow.distiller import FlowObjective

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser

LEAST_THROUGHPUT, MOST_MEMORY = 0.97, 1.03
BATCH, EMA, LR = 32, 0.99, 1e-4
LATENT = (64, 3, 3, 3)
NUM_SAMPLES = 256
MODEL = {"use": "video_dit", "preset": "small", "layers": 6, "heads": 4, "ffn": 512, "channels": 64, "text_width": 96}


def made(device: torch.device) -> tuple[Denoiser, Captions, Samples]:
    """Make model, captions and samples of the quickstart's size."""
    torch.manual_seed(0)
    maker = make_part("model", MODEL, installed()).build()
    denoiser = maker.denoiser(maker.create())
    text = Captions(make_part("text", {"use": "words", "width": 96}, installed()).build().create())
    text.requires_grad_(requires_grad=False)
    captions = [f"{count} red circles" for count in ("one", "two")] * (NUM_SAMPLES // 2)
    with torch.no_grad():
        tokens = {name: value.clone() for name, value in text.encoder(text.encoder.tokenize(captions)).items()}
    latents = np.random.default_rng(0).standard_normal((NUM_SAMPLES, *LATENT), dtype=np.float32)
    return denoiser.to(device), text.to(device), Samples(latents, captions, tokens, pixels=False)


def ours(denoiser: Denoiser, text: Captions, samples: Samples, steps: int, device: torch.device) -> None:
    """Train with the toolkit's loop, with a tracker, as a recipe runs it."""
    options = FlowOptions(steps=steps, batch=BATCH, lr=LR, ema=EMA, checkpoint_every=10**9)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            name="overhead",
            seed=0,
            folder=Path(folder),
            cache=Path(folder),
            bundles={},
            names={},
            parts={},
            record={},
            video=None,
            trackers=[make_part("tracker", "jsonl", installed())],
            world=World(device=device),
        )
        fit(FlowObjective(options, denoiser, text, None), samples, options, context)


def minimal(denoiser: Denoiser, text: Captions, samples: Samples, steps: int, device: torch.device) -> None:
    """Run the same training, written down plainly."""
    denoiser.requires_grad_().train()
    parameters = list(denoiser.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)
    averages = [parameter.detach().clone() for parameter in parameters]
    order, schedule = np.random.default_rng(1), Flow(3.0)
    for step in range(steps):
        index = order.integers(0, len(samples), BATCH).tolist()
        x0 = samples.x0(index).to(device)
        cond = text({name: value.to(device) for name, value in samples.tokens(index).items()})
        noise = torch.randn_like(x0)
        sigma = schedule.warp(torch.sigmoid(torch.randn(BATCH, device=device)))
        cond = cond.drop(torch.rand(BATCH, device=device) < 0.1)
        loss = (denoiser(interpolate(x0, noise, sigma), sigma, cond) - velocity(x0, noise)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 51)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average, parameter in zip(averages, parameters, strict=True):
                average.lerp_(parameter, 1 - EMA)
        if not torch.isfinite(loss):
            raise ValueError("not finite")


def seconds(run: Any, arguments: tuple[Any, ...], device: torch.device) -> float:
    """Time one arm on a copy of the model: wall time on a GPU, on a CPU the processor's: others may be at work."""
    denoiser, *rest = arguments
    denoiser = copy.deepcopy(denoiser)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    run(denoiser, *rest, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def peak_bytes(run: Any, arguments: tuple[Any, ...], device: torch.device) -> int:
    """Return the most that tensors hold in three steps; the allocator's own count on a GPU."""
    denoiser, text, samples, _ = arguments
    denoiser = copy.deepcopy(denoiser)
    weights = sum(p.numel() * p.element_size() for p in denoiser.parameters())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run(denoiser, text, samples, 3, device)
        return torch.cuda.max_memory_allocated()
    with LiveBytes() as live:
        run(denoiser, text, samples, 3, device)
    return weights + live.peak


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    use()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)  # as the loop: neither arm picks other kernels
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = torch.device(given.device)
    arguments = (*made(device), given.steps)
    for run in (ours, minimal):
        seconds(run, (*arguments[:3], 3), device)
    ratios = []
    for pair in range(given.pairs):
        arms = (ours, minimal) if pair % 2 else (minimal, ours)
        took = {run.__name__: seconds(run, arguments, device) for run in arms}
        ratios.append(took["minimal"] / took["ours"])
        each = {name: f"{1000 * value / given.steps:.1f} ms" for name, value in took.items()}
        print(f"pair {pair + 1}: {each}, ratio {ratios[-1]:.3f}", flush=True)
    memory = {run.__name__: peak_bytes(run, arguments, device) for run in (ours, minimal)}
    print({name: f"{value / 2**20:.1f} MiB" for name, value in memory.items()})
    throughput_ratio = statistics.median(ratios)
    memory_ratio = memory["ours"] / memory["minimal"]
    figures = {
        "throughput_ratio": round(throughput_ratio, 4),
        "memory_ratio": round(memory_ratio, 4),
        "pairs": given.pairs,
        "steps": given.steps,
        "threads": given.threads,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(figures))
    return 0 if throughput_ratio >= LEAST_THROUGHPUT and memory_ratio <= MOST_MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())
