"""The rates of decoding clips and of reading latents against the rate at which training eats them.

    python benchmarks/data_throughput.py [--clips 64] [--rounds 12] [--source 288 512] [--size 96 96]

Clips of moving texture are written as mp4 (H.264, crf 10), larger than training wants them. Taken in turn:
a training step of the quickstart's VAE on clips in memory; a batch of as many clips through ``ClipStream``; a
training step of the quickstart's DiT on latents in memory; a batch of as many latents out of shards, read row
by row from disk. Times are processor time per sample, so that other work on the machine does not count;
both kinds of work use all cores they are given, so on 2 cores the ratio is that of the rates. Medians over rounds.
The last line is one JSON object. Exit status 1 where decoding or reading is slower than training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.core.randomness import Streams
from dit_compress.data import shards
from dit_compress.data.clips import Clip
from dit_compress.data.prefetch import ClipStream
from dit_compress.data.samples import Samples
from dit_compress.data.shard_writer import Writing, count_bytes, write_shards
from dit_compress.data.video import write_video
from dit_compress.model.flow import Flow
from dit_compress.model.text import Captions
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.train.objective import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

LATENT = (96, 3, 3, 3)
CAPTION = "a large red circle moving left fast on a grey background"


def main() -> int:
    """Print times and ratios, and one JSON object."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = made_work(arguments, Path(folder))
        for step in work.values():
            step(0)
        milliseconds: dict[str, list[float]] = {name: [] for name in work}
        for number in range(1, arguments.rounds + 1):
            for name, step in work.items():
                start = time.process_time()
                count = step(number)
                milliseconds[name].append(1e3 * (time.process_time() - start) / count)
    found = {name: statistics.median(values) for name, values in milliseconds.items()}
    for name, value in found.items():
        print(f"{name:12} {value:9.2f} ms of processor time a sample")
    ratios = {
        "clips_ratio": found["train VAE"] / found["decode"],
        "latents_ratio": found["train DiT"] / found["read"],
    }
    for name, value in ratios.items():
        print(f"{'met   ' if value >= 1 else 'MISSED'} {name} {value:.2f}, at least 1")
    figures = {name.replace(" ", "_") + "_ms": round(value, 3) for name, value in found.items()}
    print(json.dumps({**{name: round(value, 2) for name, value in ratios.items()}, **figures, **about(arguments)}))
    return 0 if min(ratios.values()) >= 1 else 1


def parsed() -> argparse.Namespace:
    """Parse the sizes; the defaults are those of the quickstart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--source", type=int, nargs=2, default=(288, 512), help="height and width of the files")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 96), help="height and width for training")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the sizes, for the record."""
    return {"frames": arguments.frames, "source": list(arguments.source), "size": list(arguments.size)}


def made_work(arguments: argparse.Namespace, folder: Path) -> dict[str, Callable[[int], int]]:
    """Return, by name, a call that handles a batch and returns how many samples it had."""
    clips = written_clips(arguments, folder)
    stream = ClipStream(clips, arguments.workers)

    def decode(number: int) -> int:
        """Decode a batch; nothing is begun in advance, it would be decoded in the time of what is measured next."""
        return len(stream[[(4 * number + place) % len(clips) for place in range(4)]])

    return {
        "train VAE": vae_step(np.stack([clip.pixels() for clip in clips[:4]])),
        "decode": decode,
        "train DiT": dit_step(folder),
        "read": reading(folder / "shards"),
    }


def written_clips(arguments: argparse.Namespace, folder: Path) -> list[Clip]:
    """Write clips whose texture moves, each its own."""
    clips, (height, width) = [], arguments.source
    for number in range(arguments.clips):
        rng = np.random.default_rng(number)
        coarse = torch.from_numpy(rng.random((1, 3, height // 8, width // 8), dtype=np.float32))
        texture = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
        frames = [texture.roll((3 * frame, 5 * frame), (1, 2)) for frame in range(arguments.frames + 2)]
        pixels = (torch.stack(frames).permute(0, 2, 3, 1) * 255).to(torch.uint8).numpy()
        write_video(folder / f"{number}.mp4", pixels, 24)
        clips.append(
            Clip(folder / f"{number}.mp4", "", frames=arguments.frames, size=(arguments.size[0], arguments.size[1]))
        )
    return clips


def vae_step(pixels: np.ndarray) -> Callable[[int], int]:
    """Return training steps of the quickstart's VAE, in bf16 as there, on one batch in memory."""
    step = make_part("latent", {"use": "video_vae", "channels": LATENT[0]}, installed()).build()
    vae = step.create()
    objective = step.objective(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, fused=True)
    samples = Samples(pixels, [""] * len(pixels), {}, pixels=True)

    def train(number: int) -> int:
        index = list(range(len(samples)))
        batch = Batch(number, index, samples.x0(index), Streams(0, number, index))
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective.loss(objective.phases[0], batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return len(index)

    return train


def dit_step(folder: Path) -> Callable[[int], int]:
    """Return training steps of the quickstart's DiT by flow matching, on latents in memory."""
    options = {"preset": "small", "layers": 6, "heads": 4, "ffn": 512, "channels": LATENT[0], "text_width": 96}
    maker = make_part("model", {"use": "video_dit", **options}, installed()).build()
    student = maker.denoiser(maker.create())
    text = Captions(make_part("text", {"use": "words", "width": 96}, installed()).build().create())
    bundle = SimpleNamespace(flow=Flow(), spec=SimpleNamespace(text=None, denoiser=SimpleNamespace(log=())), lineage=[])
    context: Any = SimpleNamespace(input=bundle, slot=lambda _name: None, seed=0, name="benchmark", folder=folder)
    objective = make_part("distill", {"use": "flow"}, installed()).build().objective(context, student, None, text)
    optimizer = torch.optim.AdamW(student.module.parameters(), lr=1e-3, fused=True)
    x0, tokens = torch.randn(32, *LATENT), text.encoder.tokenize([CAPTION] * 32)

    def train(number: int) -> int:
        index = list(range(32))
        batch = Batch(number, index, x0, Streams(0, number, index), [CAPTION] * 32, tokens)
        objective.loss(objective.phases[0], batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        return 32

    return train


def reading(folder: Path) -> Callable[[int], int]:
    """Read batches of 32 latents at random places of shards on disk, not from memory."""
    rng = np.random.default_rng(0)

    def encode(first: int, last: int) -> dict[str, np.ndarray]:
        return {"latent": rng.standard_normal((last - first, *LATENT), dtype=np.float32)}

    count = 4096
    made = Writing(folder, {}, [{}] * count, list(range(count)), encode, 8, count_bytes([LATENT]))
    write_shards(made, lambda: None)
    shards.IN_MEMORY_BYTES = 0
    column = shards.Shards(folder).column("latent")
    return lambda _: len(column[rng.integers(0, count, 32)])


if __name__ == "__main__":
    sys.exit(main())
