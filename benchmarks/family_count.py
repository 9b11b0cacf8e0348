"""Counting in the world of like objects: plain sampling, the best of two seeds by the counter, CountDiffusion.

One counter corrects, chooses and judges. A caption asks for one to ``alike`` objects, so a model that draws the right
colour and shape and ignores the number is right in one of ``alike``: where plain sampling is no better there is nothing
to correct, and no verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from paired import Table, interval, run, vae_of

from dit_compress.core.randomness import generator
from dit_compress.data.clips import distinct
from dit_compress.data.samples import to_video
from dit_compress.measure.figure3 import opened
from dit_compress.model.bundle import Bundle
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.step.sampling import Generator
from dit_compress_plugins.sampler_count.attention import attention_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paired import Row

TABLE = Table(
    "The right number of like objects",
    dict.fromkeys(("plain", "best of two", "corrected", "corrected or first"), "–"),
    {"exact": 4, "error": 4, "distance": 4, "calls": 1},
    (("corrected", "plain", "exact", 1), ("corrected", "best of two", "exact", 1)),
    "CountDiffusion, another measure",
    "`exact`: share of held-out captions of which as many objects are seen as they say, of the colour and of no "
    "other shape; `error`: its standard error over captions; `distance`: how many are missing or too many. `calls`: "
    "of the network for a video, a backward pass as two; a video whose count is right is not drawn again in any "
    "arm. `best of two` is the bar at about equal compute. `corrected or first`, without a claim: the first where "
    "the counter likes it better. Seeds draw captions and noise; those of one teacher share its weights.",
)
WORDS = [
    "one", "two", "three", "four", "tiny", "red", "green", "blue", "yellow", "circle", "circles", "square", "squares",
    "triangle", "triangles", "moving", "left", "right", "up", "down", "slowly", "fast", "on", "a", "black", "grey",
    "white", "background",
]  # fmt: skip
"""The world's: plurals are no words of the default vocabulary."""
SIZES: dict[str, dict[str, Any]] = {
    "short": {
        "data": {"num_clips": 2000, "num_test": 200, "frames": 5, "size": [64, 64], "alike": 4, "grid": 0.125},
        "model": {"preset": "small", "layers": 4, "heads": 4, "head_width": 24, "ffn": 256, "channels": 48,
                  "patch": [2, 1, 1], "preconditioned": True},
        "vae": {"steps": 1, "ratio": "4x8x8", "widths": [8, 8, 8], "blocks": 1, "batch": 2}, "text": 64,
        "teachers": 2, "teacher": 2400, "batch": 32, "captions": 64, "steps": 16,
    },
    "full": {
        "data": {"num_clips": 8000, "num_test": 400, "frames": 9, "size": [96, 96], "alike": 4},
        "model": {"preset": "small", "layers": 8, "heads": 8, "head_width": 24, "ffn": 768, "channels": 32,
                  "preconditioned": True},
        "vae": {"steps": 1000, "ratio": "4x8x8"}, "text": 128,
        "teachers": 8, "teacher": 12000, "batch": 64, "captions": 128, "steps": 30,
    },
    "tiny": {
        "data": {"num_clips": 12, "num_test": 8, "frames": 5, "size": [64, 64], "alike": 4},
        "model": {"preset": "small", "layers": 1, "heads": 2, "head_width": 8, "ffn": 16, "channels": 8,
                  "patch": [2, 1, 1]},
        "vae": {"steps": 1, "ratio": "4x8x8", "widths": [8, 8, 8], "blocks": 1, "pca_clips": 12}, "text": 16,
        "teachers": 1, "teacher": 2, "batch": 2, "captions": 4, "steps": 4,
    },
}  # fmt: skip
"""teachers: models of the world, which seeds share in turn. teacher: their steps. steps: of sampling."""
GUIDANCE = 2.0


def row(out: Path, tier: str, seed: int) -> Row:
    """Train the teacher of a seed where it isn't there, draw the seed's captions by every arm, count."""
    own = SIZES[tier]
    return measured(teacher(out.with_name(f"count-{tier}"), own, seed % own["teachers"]), own, seed)


def teacher(out: Path, own: Mapping[str, Any], number: int) -> Path:
    """Train a model of the world, or what is left to be trained; its bundle. Seeds that share it wait."""
    folder = out / f"teacher{number}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        return run(folder, recipe(own, number), 1) / "teacher" / "bundle"


def recipe(own: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the recipe of a teacher."""
    training = {"use": "flow", "steps": own["teacher"], "batch": own["batch"], "lr": 2e-3, "muon_lr": 0.025,
                "weight_decay": 0.01, "decay": 0.3, "warmup": min(20, own["teacher"]), "ema": 0.99, "shift": 2,
                "guidance": GUIDANCE, "sampling_steps": own["steps"], "checkpoint_every": 300}  # fmt: skip
    return {
        "model": {"use": "video_dit", **own["model"], "text_width": own["text"]},
        "text": {"use": "words", "width": own["text"], "length": 16, "layers": 1, "vocabulary": WORDS},
        "data": {"use": "shapes", **own["data"], "seed": number},
        "seed": number,
        "trackers": [{"use": "jsonl"}],
        "steps": [{"latent": vae_of(dict(own)), "name": "vae"}, {"distill": training, "name": "teacher"}],
    }


def measured(bundle: Path, own: Mapping[str, Any], seed: int) -> Row:
    """Draw held-out captions from the seed's noise: a first time, again from other noise, again with corrections."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    context, _ = opened(str(bundle), bundle)
    every = sorted({clip.caption for clip in distinct(context.clips("test"))})
    order = generator(seed, "count/captions", 0).permutation(len(every))
    captions = [every[place] for place in order[: own["captions"]]]
    counting = make_part("sampler", {"use": "count", "counter": "shapes"}, installed()).build()
    noted = corrected(Generator(Bundle.open(bundle), context.latent_shape(), counting.sample), captions, seed)
    again = Generator(Bundle.open(bundle), context.latent_shape())
    other = [counted(counting.counter, again, caption, seed, place) for place, caption in enumerate(captions)]
    wanted, first, after = (np.array([note[name] for note in noted]) for name in ("wanted", "before", "after"))
    calls = 2.0 * own["steps"]
    extra = np.array([note["extra_calls"] + 2 * note["extra_gradients"] for note in noted])
    away = {"plain": abs(first - wanted), "corrected": abs(after - wanted)}
    away["best of two"] = np.minimum(away["plain"], abs(np.array(other) - wanted))
    away["corrected or first"] = np.minimum(away["plain"], away["corrected"])
    spent = {"plain": 0 * extra, "best of two": calls * (away["plain"] > 0), "corrected": extra}
    spent["corrected or first"] = extra
    return {name: figures(away[name], calls + spent[name]) for name in TABLE.paper}


def corrected(made: Generator, captions: Sequence[str], seed: int) -> list[dict[str, float]]:
    """Return what the sampler notes of each caption: the first pass is plain sampling, bit for bit."""
    for first in range(0, len(captions), 16):
        some = captions[first : first + 16]
        made(some, seed=seed, index=range(first, first + len(some)))
    return made.notes


def counted(counter: Any, made: Generator, caption: str, seed: int, place: int) -> int:
    """Return how many are seen in a video of other noise."""
    video = made([caption], seed=seed + 10_000, index=[place])
    ((found,),) = counter(to_video(torch.from_numpy(video)), [caption])
    return len(found.masks_NFYX)


def figures(away: np.ndarray, calls: np.ndarray) -> dict[str, float]:
    """Return the measures of an arm. away: objects missing or too many, by caption."""
    exact = away == 0
    error = float(exact.std(ddof=1) / len(exact) ** 0.5)
    return {"exact": float(exact.mean()), "error": error, "distance": float(away.mean()), "calls": float(calls.mean())}


def finished(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows, chance, and why there is no verdict, where plain sampling is not above it."""
    chance = 1 / SIZES["short"]["data"]["alike"]
    found = interval(np.array([row["plain"]["exact"] for row in rows]))
    unfit = [] if found["low"] > chance else [f"plain sampling is right in {found['mean']:.2f}, chance is {chance:.2f}"]
    return list(rows), {"chance": chance, "unfit": unfit}


def check() -> dict[str, Any]:
    """Return the losses of the map (0.1, 0.4, 0.2, 0.3) by its upper half: to delete, and to add."""
    given, mask = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64), torch.ones(4, dtype=torch.bool)
    losses = {"delete": attention_loss(given, mask, 0.5, 1.0), "add": attention_loss(given, mask, 0.5, -2.0)}
    return {name: round(float(loss), 6) for name, loss in losses.items()}
