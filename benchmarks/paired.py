"""Common parts of benchmarks that compare arms over seeds: recipes that run or go on, measures, statistics.

One seed gives every arm a row of measures. A claim, ``(better, other, measure, sign)``, says that one arm is better
than another by a measure; it is judged by the differences within seeds.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dit_compress.core.errors import UserError
from dit_compress.core.files import link_tree
from dit_compress.measure.figure3 import opened
from dit_compress.measure.quality import data_grid
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load, make_part
from dit_compress.run.pipeline import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Claim = tuple[str, str, str, int]
"""The arm said to be better, the other, the measure, and 1 where more is better, -1 where less is."""
Row = dict[str, dict[str, float]]
"""The measures of one seed, by arm."""
LEVEL = 0.05

# ------------------------------------------------------------------ what runs


def status_of(main: Callable[[], int]) -> int:
    """Run a command and return its exit status: 2, and one message, where a user made a mistake."""
    try:
        return main()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def single_thread() -> None:
    """Compute with one thread in this worker, whatever the machine has."""
    import torch

    torch.set_num_threads(1)


def run(folder: Path, recipe: dict[str, Any], threads: int) -> Path:
    """Run a recipe, or what is left of it; the folder of its steps."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump({"name": folder.name, **recipe}, sort_keys=False), "utf-8")
    Runner(load(path, installed()), folder / "run", threads, (), frozenset(), lambda text: print(text, flush=True)).run(
        None
    )
    return folder / "run" / "steps"


def shared(sizes: dict[str, Any]) -> dict[str, Any]:
    """Return text and data of a tier."""
    return {"text": {"use": "words", "width": sizes["text"]}, "data": {"use": "shapes", **sizes["data"]}}


def base_recipe(sizes: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of clips and the VAE, shared by all seeds."""
    head = {"model": {"use": "video_dit", **sizes["model"], "text_width": sizes["text"]}}
    return {**head, **shared(sizes), "seed": 0, "steps": [{"latent": vae_of(sizes), "name": "vae"}]}


def vae_of(sizes: dict[str, Any]) -> dict[str, Any]:
    """Return the VAE of a tier."""
    return {"use": "video_vae", "channels": sizes["model"]["channels"], "batch": 4, "lr": 2e-2, **sizes["vae"]}


def encode(vae: Path) -> None:
    """Encode all clips as latents, once: seeds share the codec."""
    context, _ = opened(str(vae), vae)
    for split in ("train", "test"):
        context.latents(split, context.text())


def link_cache(done: Path, folder: Path) -> None:
    """Give the run that ``folder`` is for the clips and latents of another one."""
    cache, partial = folder / "run" / "cache", folder / "run" / "cache.partial"
    if cache.is_dir():
        return
    shutil.rmtree(partial, ignore_errors=True)
    link_tree(done / "cache", partial)
    partial.rename(cache)


def parameters(model: dict[str, Any], text_width: int) -> int:
    """Count the parameters of a ``video_dit`` of these options."""
    import torch

    options = {"use": "video_dit", **model, "text_width": text_width}
    with torch.device("meta"):
        module = make_part("model", options, installed()).build().create()
    return sum(parameter.numel() for parameter in module.parameters())


# ------------------------------------------------------------------ what is measured


def quality(bundle: Path, score: dict[str, Any]) -> dict[str, float]:
    """Measure a bundle in a run: the flow-matching loss on the fixed grid of held-out clips, accuracy, parameters.

    score: options of ``evaluate: {use: shapes}``, whose other figures come along.
    """
    context, denoiser = opened(str(bundle), bundle)
    text = context.text()
    grid = data_grid(context.latents("test", text), text, context.input.flow, 128, denoiser.possible)
    found = {"loss": grid.loss(denoiser)}
    with tempfile.TemporaryDirectory() as folder:
        drawn = make_part("evaluate", {"use": "shapes", **score}, installed()).build()
        metrics = drawn.run(replace(context, folder=Path(folder))).metrics
    found["accuracy"] = metrics["attribute_accuracy"]
    found["displacement"] = metrics["displacement_ratio"]
    found["params"] = sum(parameter.numel() for parameter in denoiser.module.parameters())
    return found


# ------------------------------------------------------------------ what follows


def judge(rows: Sequence[Row], claims: Iterable[Claim]) -> list[dict[str, Any]]:
    """Judge each claim: its mean paired advantage, 95% interval (Student's t), p, corrected p, and verdict.

    ``held``: in its favour, p below ``LEVEL`` after Holm's correction. ``reversed``: as clearly the other way round.
    """
    verdicts = []
    for first, other, measure, sign in claims:
        gains = sign * np.array([row[first][measure] - row[other][measure] for row in rows])
        found = {**interval(gains), "p": sign_flip(gains), "p_reversed": sign_flip(-gains)}
        verdicts.append({"better": first, "other": other, "measure": measure, **found})
    corrected = holm([verdict["p"] for verdict in verdicts])
    backwards = holm([verdict["p_reversed"] for verdict in verdicts])
    for verdict, value, back in zip(verdicts, corrected, backwards, strict=True):
        verdict |= {"corrected": value, "corrected_reversed": back}
        verdict |= {"held": verdict["mean"] > 0 and value < LEVEL, "reversed": verdict["mean"] < 0 and back < LEVEL}
    return verdicts


def sign_flip(gains: np.ndarray) -> float:
    """Return the exact one-sided p: the share of all sign patterns whose mean is at least the one seen."""
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(gains))))
    return float(np.mean(signs @ np.abs(gains) >= gains.sum() - 1e-12 * np.abs(gains).sum()))


def holm(values: Sequence[float]) -> list[float]:
    """Return Holm's step-down correction."""
    order = np.argsort(values, kind="stable")
    corrected = np.empty(len(values))
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = running
    return corrected.tolist()


def interval(gains: np.ndarray) -> dict[str, float]:
    """Return the mean and its 95% confidence interval."""
    from scipy.stats import t

    half = (
        float(t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else float("inf")
    )
    return {"mean": float(gains.mean()), "low": float(gains.mean()) - half, "high": float(gains.mean()) + half}


# ------------------------------------------------------------------ how it is written


@dataclass(frozen=True)
class Table:
    """A table of the paper in miniature.

    paper: every arm, with the paper's numbers. measures: shown, with their decimals. claims: fixed before any run.
    unit: of the paper's numbers.
    """

    title: str
    paper: Mapping[str, str]
    measures: Mapping[str, int]
    claims: Sequence[Claim]
    unit: str
    note: str

    def means(self, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
        """Return the means of every arm and measure, over seeds."""
        return {
            arm: {name: round(float(np.mean([row[arm][name] for row in rows])), 6) for name in self.measures}
            for arm in self.paper
        }

    def markdown(self, rows: Sequence[Row], verdicts: Sequence[dict[str, Any]], how: str) -> str:
        """Format the arms with 95% intervals beside the paper, then every claim; ``how`` it was measured, and where."""
        lines = [f"# {self.title}", "", f"{len(rows)} seeds; {how}. Mean ± half of the 95% interval.", ""]
        lines += _row("arm", *self.measures, f"paper: {self.unit}"), "|---" * (len(self.measures) + 2) + "|"
        for arm, paper in self.paper.items():
            cells = [_cell([row[arm][name] for row in rows], digits) for name, digits in self.measures.items()]
            lines.append(_row(arm, *cells, paper))
        return "\n".join([*lines, "", self.note, "", claims_table(verdicts)]) + "\n"


def claims_table(verdicts: Sequence[dict[str, Any]]) -> str:
    """Format every claim with its interval, p and verdict."""
    head = _row("claim", "by", "mean advantage", "95% interval", "corrected p (of the sign seen)", "verdict")
    return "\n".join([head, "|---" * 6 + "|", *(_sentence(verdict) for verdict in verdicts)])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(values: Sequence[float], digits: int) -> str:
    found = interval(np.array(values))
    half = found["high"] - found["mean"]
    spread = f" ± {half:.{digits}f}" if 0 < half < float("inf") else ""
    return f"{found['mean']:,.{digits}f}{spread}"


def _sentence(verdict: dict[str, Any]) -> str:
    word = "held" if verdict["held"] else "**reversed**" if verdict["reversed"] else "not held"
    p = verdict["corrected_reversed"] if verdict["mean"] < 0 else verdict["corrected"]
    spread = f"{verdict['low']:+.4f} … {verdict['high']:+.4f}" if np.isfinite(verdict["low"]) else "–"
    claim = f"{verdict['better']} better than {verdict['other']}"
    return _row(claim, verdict["measure"], f"{verdict['mean']:+.4f}", spread, f"{p:.4f}", word)
