"""One seed of each of the paper's tables in miniature; see tables.py."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paired import base_recipe, encode, link_cache, quality, run, shared, vae_of

from dit_compress.core.files import read_json
from dit_compress.core.randomness import Streams
from dit_compress.measure.figure3 import opened
from dit_compress.measure.latency import timed
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.flow import euler
from dit_compress.model.spec import ComponentSpec
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from paired import Row
    from torch import Tensor

GUIDANCE = 4
PLAIN_STEPS = 4
TIMED_BATCH, TIMED_ROUNDS = 8, 9

# ------------------------------------------------------------------ what seeds share


def base(out: Path, sizes: dict[str, Any]) -> None:
    """Make the clips, the VAE and its latents, for Table 5 and the sweep."""
    encode(run(out / "base", base_recipe(sizes), 1) / "vae" / "bundle")


def ratio_base(out: Path, sizes: dict[str, Any], ratios: Sequence[str]) -> None:
    """Make a VAE per ratio, what it keeps of real clips, and its latents, for Table 3."""
    recipe, steps = base_recipe(ratio_sizes(sizes)), []
    kept = {"use": "shapes", "source": "round_trip", "num_captions": sizes["ratio_data"]["num_test"]}
    for ratio in ratios:
        vae = {**vae_of(sizes), "steps": sizes["ratio_vae"], "ratio": ratio}
        steps.append({"latent": vae, "name": ratio, "input": "base"})
        steps.append({"evaluate": kept, "name": f"{ratio}-kept", "input": ratio})
    done = run(out / "base-ratios", {**recipe, "steps": steps}, 1)
    for ratio in ratios:
        encode(done / ratio / "bundle")


def ratio_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    """Return a tier with the videos and the DiT of Table 3: every ratio divides their size."""
    return {**sizes, "data": sizes["ratio_data"], "model": {**sizes["model"], "layers": sizes["ratio_layers"]}}


def begun(vae: Path, folder: Path, model: Mapping[str, Any], text_width: int, seed: int) -> str:
    """Write a bundle of new weights, drawn from the seed, around a trained VAE; return its path, as recipes name it."""
    import torch

    made: dict[str, Any] = {}
    specs: dict[str, Any] = {}
    options = {
        "denoiser": ("model", {"use": "video_dit", **model, "text_width": text_width}),
        "text": ("text", {"use": "words", "width": text_width}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, (kind, given) in options.items():
            part = make_part(kind, given, installed())
            made[name] = part.build().create()
            specs[name] = ComponentSpec(kind, part.name, part.build().config_of(made[name]))
    bundle = Bundle.open(vae)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(folder, replace(bundle.spec, **specs), made, base=bundle, lineage=bundle.lineage)
    return str(folder)


def trained(out: Path, sizes: dict[str, Any], seed: int) -> str:
    """Train the seed's teacher, shared by Table 5 and the sweep; return its bundle's path."""
    folder = out / f"seed{seed}" / "teacher"
    link_cache(out / "base" / "run", folder)
    vae = out / "base" / "run" / "steps" / "vae" / "bundle"
    start = begun(vae, folder / "start", sizes["model"], sizes["text"], seed)
    step = {"distill": flow_step(sizes, sizes["teacher"]), "name": "teacher", "input": start}
    return str(run(folder, {**shared(sizes), "seed": seed, "steps": [step]}, 1) / "teacher" / "bundle")


def flow_step(sizes: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return a step of flow matching, from scratch."""
    return {"use": "flow", "guidance": GUIDANCE, **training(sizes, steps)}


def training(sizes: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the training options of every model but those of Table 5."""
    how = {"steps": steps, "batch": sizes["batch"], "decay": 0.05, "ema": sizes["ema"], "warmup": min(20, steps)}
    return {**how, **sizes["train"]}


# ------------------------------------------------------------------ one seed


def row_3(out: Path, sizes: dict[str, Any], seed: int, ratios: Sequence[str]) -> Row:
    """Train a DiT from scratch on each VAE."""
    sizes, folder, common = ratio_sizes(sizes), out / f"seed{seed}" / "table3", out / "base-ratios"
    link_cache(common / "run", folder)
    steps = []
    for ratio in ratios:
        vae = common / "run" / "steps" / ratio / "bundle"
        start = begun(vae, folder / "starts" / ratio, sizes["model"], sizes["text"], seed)
        steps.append({"distill": flow_step(sizes, sizes["ratio_steps"]), "name": ratio, "input": start})
    done = run(folder, {**shared(sizes), "seed": seed, "steps": steps}, 1)
    bundles = {ratio: done / ratio / "bundle" for ratio in ratios}
    found = {ratio: quality(bundle, {**sizes["guided"], "seed": seed}) for ratio, bundle in bundles.items()}
    costs = step_costs(bundles)
    for ratio in ratios:
        kept = {
            name: read_json(common / "run" / "steps" / name / "step.json")["metrics"]
            for name in (ratio, f"{ratio}-kept")
        }
        found[ratio] |= {"psnr_db": kept[ratio]["psnr_db"], "round_trip": kept[f"{ratio}-kept"]["attribute_accuracy"]}
        found[ratio] |= costs[ratio]
    return found


def row_5(out: Path, sizes: dict[str, Any], seed: int, heads: Mapping[str, dict[str, Any]]) -> Row:
    """Distil the teacher to four steps against each discriminator."""
    teacher = trained(out, sizes, seed)
    bundles = {arm: student(out, sizes, seed, teacher, head) for arm, head in heads.items()}
    found: Row = {}
    for arm, bundle in {**bundles, "teacher": Path(teacher)}.items():
        found[arm] = {**quality(bundle, {**sizes["plain"], "seed": seed}), "energy": energy(bundle, seed)}
        found[arm]["trained"] = head_parameters(Path(teacher), heads[arm]) if arm in heads else 0
    return found


def student(out: Path, sizes: dict[str, Any], seed: int, teacher: str, head: dict[str, Any]) -> Path:
    """Train one few-step student, in a folder of its own: Table 5 and the sweep have one in common."""
    folder = out / f"seed{seed}" / "students" / f"{head['use']}-{head['frozen_blocks']}"
    link_cache(out / "base" / "run", folder)
    how = {"use": "adversarial", "sampling_steps": PLAIN_STEPS, "batch": sizes["batch"], "warmup": 10}
    distill = {**how, **sizes["adversarial"], "discriminator": head}
    step = {"distill": distill, "name": "student", "input": teacher, "teacher": teacher}
    return run(folder, {**shared(sizes), "seed": seed, "steps": [step]}, 1) / "student" / "bundle"


# ------------------------------------------------------------------ what is measured


def step_costs(bundles: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Measure tokens of a video, and ms of one DiT call per video: medians of calls taken in turn, in batches."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    calls: dict[str, Callable[[], object]] = {}
    costs: dict[str, dict[str, float]] = {}
    for name, path in bundles.items():
        context, denoiser = opened(str(path), path)
        _, *size = context.latent_shape()
        denoiser.module.to(device)
        inputs = denoiser.example(TIMED_BATCH, tuple(size))
        calls[name] = lambda denoiser=denoiser, inputs=inputs: denoiser(*inputs)
        costs[name] = {"tokens": denoiser.tokens(tuple(size))}
    clock = timed if device == "cuda" else processor_seconds
    with torch.no_grad():
        rounds = [{name: clock(call) for name, call in calls.items()} for _ in range(TIMED_ROUNDS + 1)]
    for name in calls:
        costs[name]["ms"] = 1e3 / TIMED_BATCH * statistics.median(seconds[name] for seconds in rounds[1:])
    return costs


def processor_seconds(call: Callable[[], object]) -> float:
    """Return the processor seconds of this process: other work on the machine does not count."""
    before = time.process_time()
    call()
    return time.process_time() - before


def energy(bundle: Path, seed: int) -> float:
    """Return the energy distance between what the bundle samples in four plain steps and held-out clips, as latents."""
    import torch

    context, denoiser = opened(str(bundle), bundle)
    text = context.text()
    real = context.latents("test", text)
    index = list(range(len(real)))
    with torch.no_grad():
        noise = Streams(seed, 0, index).normal("energy", context.latent_shape())
        drawn = euler(denoiser, noise, text(real.tokens(index)), context.input.flow.sigmas(PLAIN_STEPS))
    return energy_distance(drawn.flatten(1), real.x0(index).flatten(1))


def energy_distance(x_ND: Tensor, y_MD: Tensor) -> float:
    """Return ``2·E|X-Y| - E|X-X'| - E|Y-Y'|`` without bias: 0 in the mean for equal distributions."""
    import torch

    def spread(points: Tensor) -> float:
        return float(torch.pdist(points.double()).mean())

    return 2 * float(torch.cdist(x_ND.double(), y_MD.double()).mean()) - spread(x_ND) - spread(y_MD)


def head_parameters(generator: Path, head: dict[str, Any]) -> int:
    """Count the trainable parameters of a discriminator on this generator."""
    _, denoiser = opened(str(generator), generator)
    judge = make_part("discriminator", head, installed()).build().create(denoiser)
    return sum(parameter.numel() for parameter in judge.parameters() if parameter.requires_grad)
