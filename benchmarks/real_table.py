"""Table 3 in miniature on real clips: an ``h3ae`` of each ratio, equal channels, widths and steps; see ``tables.py``.

Clips are those of ``footage.py``, laid out as DAVIS lays them out: films never seen are the ``val`` list. No DiT is
trained: nothing reads the quality of what it would make of a few films. Its cost is that of one call on the latents.
"""

from __future__ import annotations

import itertools
import shutil
from typing import TYPE_CHECKING, Any

import footage
from in_process import context_of, prepared, step
from paired import Table
from real_clips import films_here, measured, round_trip
from tabled import begun, step_costs

from dit_compress.core.files import read_json, whole_folder, write_json
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from paired import Row

    from dit_compress.plugin.options import Part

RATIOS = ("4x16x16", "4x32x32", "8x32x32", "8x64x64")
TABLE = Table(
    "Table 3 on real clips: ratio of h3ae, equal latent channels",
    {
        "4x16x16": "33.1 dB, 7,900 ms; phone: out of memory",
        "4x32x32": "30.9 dB, 920 ms; phone 3,315 ms",
        "8x32x32": "30.6 dB, 380 ms; phone 880 ms",
        "8x64x64": "28.2 dB, 90 ms; phone 155 ms",
    },
    {"psnr_db": 2, "ssim": 3, "tokens": 0, "ms": 2},
    (
        *((coarser, finer, "ms", -1) for finer, coarser in itertools.pairwise(RATIOS)),
        *((finer, coarser, "psnr_db", 1) for finer, coarser in itertools.pairwise(RATIOS)),
    ),
    "PSNR and A100 ms a step",
    "A codec for each ratio and seed. `psnr_db`, `ssim`: clips of films never seen. `ms`: a DiT with random weights.",
)
_SMALL = {"preset": "small", "layers": 6, "heads": 16, "head_width": 6, "ffn": 288, "preconditioned": True}
SIZES: dict[str, dict[str, Any]] = {
    "short": {
        "clip": (9, (128, 128)), "scale": 2.0, "most": 400, "test": 32, "channels": 96, "model": _SMALL, "text": 64,
        "vae": {"widths": [32, 64, 96, 128], "blocks": 1, "steps": 200, "batch": 2, "ema": 0.98,
                "statistics_clips": 64},
    },
    "full": {
        "clip": (17, (128, 128)), "scale": 2.0, "most": 400, "test": 1000, "channels": 96, "text": 128,
        "model": {**_SMALL, "layers": 8, "head_width": 24, "ffn": 1152}, "vae": {"steps": 5000},
    },
    "tiny": {
        "clip": (9, (64, 64)), "scale": 1.0, "most": 40, "test": 2, "channels": 8, "text": 16,
        "model": {"preset": "small", "layers": 1, "heads": 2, "head_width": 8, "ffn": 16},
        "vae": {"widths": [8, 8], "blocks": 1, "heads": 2, "steps": 1, "batch": 2, "statistics_clips": 2},
    },
}  # fmt: skip
"""test: clips of unseen films that are measured, evenly chosen."""


def rows_of(out: Path, tier: str, seeds: int) -> list[Row]:
    """Run what has not run of every seed."""
    data = clips_of(out / "footage", SIZES[tier])
    prepared(out / "cache", data)
    return [row(out, SIZES[tier], data, seed) for seed in range(seeds)]


def clips_of(folder: Path, sizes: dict[str, Any]) -> Part:
    """Lay out the films that are installed as DAVIS does, unless that is done; return the recipe's ``data``."""
    if not folder.is_dir():
        with whole_folder(folder) as partial:
            size = {"scale": sizes["scale"], "most": sizes["most"]}
            cuts = footage.cut(films_here(), partial / "cut", *sizes["clip"], **size)
            for part, name in (("train", "train"), ("unseen", "val")):
                clips = sorted(cuts[part].folder.iterdir())
                put(clips[:: max(1, len(clips) // sizes["test"])] if name == "val" else clips, partial, name)
            shutil.rmtree(partial / "cut")
    frames, size = sizes["clip"]
    how = {"path": str(folder), "frames": frames, "size": list(size), "split_by": "sets", "workers": 0}
    return make_part("data", {"use": "videos", **how}, installed())


def put(clips: Sequence[Path], folder: Path, name: str) -> None:
    """Move clips among DAVIS' frames, and list them."""
    frames, lists = folder / "JPEGImages" / "480p", folder / "ImageSets" / "2017"
    for each in (frames, lists):
        each.mkdir(parents=True, exist_ok=True)
    for clip in clips:
        clip.rename(frames / clip.name)
    (lists / f"{name}.txt").write_text("".join(f"{clip.name}\n" for clip in clips), "utf-8")


def row(out: Path, sizes: dict[str, Any], data: Part, seed: int) -> Row:
    """Train a codec of each ratio, measure all."""
    place, cache = out / f"seed{seed}" / "table3-real", out / "cache"
    if (place / "row.json").is_file():
        return read_json(place / "row.json")
    found, bundles = {}, {}
    for ratio in RATIOS:
        how = {"use": "h3ae", "ratio": ratio, "channels": sizes["channels"], **sizes["vae"]}
        vae, _ = step(place / ratio, cache, ("latent", how), data, seed)
        test = context_of(place / ratio, cache, data, seed, input=vae).pixels("test")
        seen = measured(round_trip(vae.codec()), test)
        found[ratio] = {"psnr_db": seen["psnr_db"], "ssim": seen["ssim"]}
        model = {**sizes["model"], "channels": sizes["channels"]}
        bundles[ratio] = place / "starts" / ratio
        begun(vae.path, bundles[ratio], model, sizes["text"], seed)
    costs = step_costs(bundles)
    row = {ratio: found[ratio] | costs[ratio] for ratio in RATIOS}
    write_json(place / "row.json", row)
    return row
