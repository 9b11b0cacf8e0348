"""What a codec's further losses do: latent consistency, scale equivariance, Haar bands, a critic; paired seeds.

    python benchmarks/vae_losses.py [--seeds 8] [--out runs/vae-losses] [--tier short|full|tiny]

An ``h3ae`` learns moving shapes by L1, temporal difference and KL (``plain``), and by one loss more; equal steps, from
equal first weights, on equal batches. Then equal DiTs learn the latents of ``plain`` and of ``scale``, equal steps.
Losses in different latents cannot be compared; what a DiT samples, decoded by its codec, can: ``energy`` is the energy
distance between those videos and the held-out clips of the same captions, in pixels averaged to 16x16 a frame, and
``accuracy`` the share of attributes that a reader finds right in the pixels. The claim is about ``energy``.

Claims stand in ``CLAIMS`` before any run, by exact sign-flip tests over seeds, corrected for all six by Holm, 0.05.
What is to be no worse, or no gain, is claimed with a margin: against ``plain`` with so many decibels more or less. Five
seeds could hold none of six such claims (their smallest p is 1/32), hence eight. Writes ``vae-losses.md``; the last
line is one JSON object. A claim that fails is a result: exit status 0. A killed run goes on. One core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from in_process import context_of, prepared, step
from paired import Table, interval, judge, single_thread, status_of
from tabled import begun, energy_distance
from torch.nn import functional

from dit_compress.core.files import read_json, write_json
from dit_compress.core.randomness import Streams
from dit_compress.data.clips import distinct
from dit_compress.data.samples import to_video
from dit_compress.measure.latency import machine
from dit_compress.model.bundle import Bundle
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.train.codec.step import psnr_8_bits
from dit_compress_plugins.evaluate_spectrum.spectrum import power, upper_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paired import Claim, Row
    from torch import Tensor

    from dit_compress.plugin.options import Part
    from dit_compress.step.context import Context

ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "consistency": {"consistency": 0.1},
    "scale": {"scale": 0.25, "scales": [2]},
    "haar": {"haar": 0.5},
    "gan": {"adversarial": 0.02},
}
TAUGHT = ("plain", "scale")
"""Whose latents a DiT learns."""
WORSE, GAIN, COST = 0.1, 0.1, 0.5
"""Margins in dB: of what is to be no worse than ``plain``, of what is to be no gain, and what scale may cost."""
CODECS: tuple[Claim, ...] = (
    ("consistency", f"plain - {WORSE} dB", "psnr_db", 1),
    (f"plain + {GAIN} dB", "haar", "psnr_db", 1),
    (f"plain + {GAIN} dB", "gan", "psnr_db", 1),
    ("scale", "plain", "upper_share", -1),
    ("scale", f"plain - {COST} dB", "psnr_db", 1),
)
DITS: tuple[Claim, ...] = (("DiT of scale", "DiT of plain", "energy", -1),)
CLAIMS = (*CODECS, *DITS)
TABLES = (
    Table(
        "Further losses of a codec",
        {
            "plain": "30.06 dB",
            "consistency": "30.23 dB",
            "scale": "–",
            "haar": "no gain",
            "gan": "no gain",
            "no codec": "–",
        },
        {"psnr_db": 3, "upper_share": 4},
        CODECS,
        "H3AE, DAVIS (no gain: abstract)",
        "`upper_share`: share of the latents' power above half of the largest spatial frequency. `no codec`: every "
        "clip as its mean colour, and white noise as latents.",
    ),
    Table(
        "A DiT on the latents, equal steps",
        {"DiT of scale": "–", "DiT of plain": "–", "clips": "–", "other captions": "–"},
        {"energy": 4, "accuracy": 3},
        DITS,
        "not in the paper",
        "`clips`: training clips in the place of samples, of other captions; what the reader finds in held-out clips. "
        "`other captions`: held-out clips beside captions of others, chance for `accuracy`.",
    ),
)
TIERS: dict[str, dict[str, Any]] = {
    "short": {
        "data": {"num_clips": 600, "num_test": 128, "frames": 9, "size": [64, 64], "max_objects": 1},
        "vae": {"ratio": "4x8x8", "channels": 16, "widths": [24, 48, 64], "blocks": 1, "steps": 300, "ema": 0.98},
        "model": {"preset": "small", "layers": 4, "heads": 4, "head_width": 16, "ffn": 256, "channels": 16,
                  "preconditioned": True},
        "text": 64, "flow": {"steps": 260, "batch": 16, "lr": 2e-3, "muon_lr": 0.02, "ema": 0.98, "decay": 0.05},
        "sampling": 10,
    },
    "full": {
        "data": {"num_clips": 4000, "num_test": 256, "frames": 17, "size": [96, 96]},
        "vae": {"ratio": "4x8x8", "channels": 32, "steps": 3000},
        "model": {"preset": "small", "layers": 8, "heads": 8, "head_width": 48, "ffn": 1152, "channels": 32,
                  "preconditioned": True},
        "text": 128, "flow": {"steps": 6000, "batch": 64, "lr": 1e-3, "muon_lr": 0.02, "ema": 0.99, "decay": 0.05},
        "sampling": 20,
    },
    "tiny": {
        "data": {"num_clips": 6, "num_test": 3, "frames": 5, "size": [64, 64], "max_objects": 1},
        "vae": {"ratio": "4x16x16", "channels": 4, "widths": [8, 8], "blocks": 1, "heads": 2, "steps": 1, "batch": 2},
        "model": {"preset": "small", "layers": 1, "heads": 2, "head_width": 8, "ffn": 16, "channels": 4},
        "text": 16, "flow": {"steps": 1, "batch": 2, "lr": 1e-3}, "sampling": 1,
    },
}  # fmt: skip
SIDE = 16
"""Pixels a side of the frames that distances of videos are taken of."""


def main(given: list[str] | None = None) -> int:
    """Run what has not run, write the tables, print them, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/vae-losses"))
    parser.add_argument("--tier", choices=TIERS, default="short")
    arguments = parser.parse_args(given)
    single_thread()
    started = time.process_time()
    rows = [with_margins(row(arguments.out / arguments.tier, arguments.tier, seed)) for seed in range(arguments.seeds)]
    verdicts = judge(rows, CLAIMS)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    how = f"{arguments.tier} tier; {machine().partition(',')[0]}, one thread; {day}"
    judged = (verdicts[: len(CODECS)], verdicts[len(CODECS) :])
    text = "\n".join(table.markdown(rows, own, how) for table, own in zip(TABLES, judged, strict=True))
    (arguments.out / "vae-losses.md").write_text(text, "utf-8")
    print(text)
    result: dict[str, Any] = {"tier": arguments.tier, "seeds": arguments.seeds, "claims": len(CLAIMS)}
    result |= {word: sum(verdict[word] for verdict in verdicts) for word in ("held", "reversed")}
    result |= {"arms": {name: means for table in TABLES for name, means in table.means(rows).items()}}
    result |= {f"{arm}_minus_plain_db": gained(rows, arm) for arm in ARMS if arm != "plain"}
    print(json.dumps({**result, "cpu_minutes": round((time.process_time() - started) / 60, 1)}))
    return 0


def with_margins(row: Row) -> Row:
    """Return a row with what claims with a margin compare with."""
    plain = row["plain"]["psnr_db"]
    shifts = {f"plain - {WORSE} dB": -WORSE, f"plain + {GAIN} dB": GAIN, f"plain - {COST} dB": -COST}
    return {**row, **{name: {"psnr_db": plain + shift} for name, shift in shifts.items()}}


def gained(rows: Sequence[Row], arm: str) -> list[float | None]:
    """Return the mean gain of an arm over ``plain`` in dB, and half of its 95% interval."""
    found = interval(np.array([row[arm]["psnr_db"] - row["plain"]["psnr_db"] for row in rows]))
    half = found["high"] - found["mean"]
    return [round(found["mean"], 4), round(half, 4) if np.isfinite(half) else None]


# ------------------------------------------------------------------ what runs


def row(out: Path, tier: str, seed: int) -> Row:
    """Train the codecs of a seed, and a DiT on two of them, measure all; what is there stays."""
    sizes, place, cache = TIERS[tier], out / f"seed{seed}", out / "cache"
    if (place / "row.json").is_file():
        return read_json(place / "row.json")
    data = make_part("data", {"use": "shapes", **sizes["data"]}, installed())
    prepared(cache, data)
    found: Row = {}
    for arm, losses in ARMS.items():
        how = {"use": "h3ae", "first_share": 0, **sizes["vae"], "losses": {"consistency": 0, **losses}}
        vae, figures = step(place / arm, cache, ("latent", how), data, seed)
        found[arm] = {"psnr_db": figures["psnr_db"], "upper_share": spectrum(vae, cache, data)}
        if arm in TAUGHT:
            start = Bundle.open(begun(vae.path, place / f"{arm}-start", sizes["model"], sizes["text"], seed))
            flow = {"use": "flow", "guidance": 1, **sizes["flow"]}
            dit, _ = step(place / f"{arm}-dit", cache, ("distill", flow), data, seed, input=start)
            found[f"DiT of {arm}"] = sampled(dit, cache, data, seed, sizes["sampling"])
    found |= floors(dit, cache, data)
    write_json(place / "row.json", found)
    return found


# ------------------------------------------------------------------ what is measured


@torch.no_grad()
def spectrum(vae: Bundle, cache: Path, data: Part) -> float:
    """Return the share of the power of held-out latents in the upper half of the frequencies."""
    codec: Any = vae.codec()
    return upper_share([(1.0, power(codec.eval().encode(held_out(vae, cache, data)[0])))])


@torch.no_grad()
def sampled(dit: Bundle, cache: Path, data: Part, seed: int, steps: int) -> dict[str, float]:
    """Measure what a DiT samples of the held-out clips' captions, beside those clips."""
    video, captions = held_out(dit, cache, data)
    context = context_of(dit.path.parent, cache, data, seed, input=dit)
    noise = Streams(seed, 0, range(len(captions))).normal("sample", context.latent_shape())
    flow, denoiser, codec = context.input.flow, context.input.denoiser().eval(), context.input.codec().eval()
    latent = flow.sample()(denoiser, noise, context.text().eval().cond(captions), flow.sigmas(steps), 1)
    made = torch.cat([codec.decode(part).clamp(-1, 1) for part in latent.split(16)])
    return {"energy": energy_distance(small(made), small(video)), "accuracy": read(context, made, captions)}


@torch.no_grad()
def floors(bundle: Bundle, cache: Path, data: Part) -> Row:
    """Measure mean colours, white noise, training clips as if they were samples, and clips beside other captions."""
    video, captions = held_out(bundle, cache, data)
    context = context_of(bundle.path.parent, cache, data, input=bundle)
    colours, codec = video.mean((2, 3, 4), keepdim=True).expand_as(video), context.input.codec().eval()
    white = torch.ones(codec.encode(video[:1]).shape[-2:])
    clips = context.pixels("train").x0(range(len(captions)))
    own, others = (read(context, video, said) for said in (captions, [*captions[1:], captions[0]]))
    return {
        "no codec": {"psnr_db": float(psnr_8_bits(colours, video).mean()), "upper_share": upper_share([(1.0, white)])},
        "clips": {"energy": energy_distance(small(clips), small(video)), "accuracy": own},
        "other captions": {"energy": 0.0, "accuracy": others},
    }


def held_out(bundle: Bundle, cache: Path, data: Part) -> tuple[Tensor, list[str]]:
    """Return the held-out clips of distinct captions, and those."""
    clips = distinct(context_of(bundle.path.parent, cache, data, input=bundle).clips("test"))
    pixels = np.stack([clip.pixels() for clip in clips])
    return to_video(torch.from_numpy(pixels)), [clip.caption for clip in clips]


def small(video_BCFYX: Tensor) -> Tensor:
    """Average videos to few pixels a frame, as rows."""
    return functional.adaptive_avg_pool3d(video_BCFYX, (video_BCFYX.shape[2], SIDE, SIDE)).flatten(1)


def read(context: Context, video_BCFYX: Tensor, captions: Sequence[str]) -> float:
    """Return the share of attributes of the captions that are read from the pixels."""
    reader = make_part("reward", "reader", installed()).build().create(context)
    return float(torch.sigmoid(reader(video_BCFYX, captions)).mean())


if __name__ == "__main__":
    sys.exit(status_of(main))
