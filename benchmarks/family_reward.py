"""Rewards on the world of moving shapes: K = 1, K = 2 and plain flow matching from one model, equal updates.

A critic (``reward: shapes``) is trained for, and what reads the pixels (``reward: reader``) judges. *Hacked*, in the
last line: seeds of an arm in which the critic rose above the model that all begin with, and the reader did not;
*floors*: the accuracy of two models that ignore captions, and of real clips through the VAE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from paired import Table, run, vae_of
from scenes import held_out

from dit_compress.core.randomness import Streams
from dit_compress.data.clips import distinct
from dit_compress.data.samples import to_video
from dit_compress.measure.figure3 import opened
from dit_compress.model.denoiser import Cond
from dit_compress.model.flow import Flow
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.testing.models import tiny_text
from dit_compress_plugins.distill_reward import RewardOptions
from dit_compress_plugins.distill_reward.distiller import RewardObjective
from dit_compress_plugins.evaluate_shapes import scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paired import Row
    from torch import Tensor

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.step.context import Context

REWARDED = {"reward K=1": 1, "reward K=2": 2}
TABLE = Table(
    "A frozen critic's reward through the last sampling steps",
    {**dict.fromkeys(REWARDED, "+4.74% over Flow-GRPO (version 2; K not known)"), "flow": "–", "start": "–"},
    {"accuracy": 4, "error": 4, "critic": 4},
    (
        ("reward K=1", "start", "accuracy", 1),
        ("reward K=2", "start", "accuracy", 1),
        ("reward K=1", "flow", "accuracy", 1),
        ("reward K=2", "flow", "accuracy", 1),
        ("reward K=2", "reward K=1", "accuracy", 1),
    ),
    "Diffusion-DRF, VBench-2.0",
    "`accuracy`: share of attributes that the reader, which nothing was trained for, finds right in samples of "
    "held-out captions that no validation saw (the reward's arms keep the best of eight by the reader); `error`: its "
    "standard error over captions. `critic`: the mean probability that the critic gives to the same. `start` is the "
    "model that all begin with.",
)
SIZES: dict[str, dict[str, Any]] = {
    "short": {
        "data": {"num_clips": 1000, "num_test": 128, "frames": 9, "size": [64, 64], "max_objects": 1},
        "model": {"preset": "small", "layers": 6, "heads": 8, "head_width": 8, "ffn": 256, "channels": 64,
                  "preconditioned": True},
        "vae": {"steps": 300, "ratio": "4x16x16"}, "text": 64, "teacher": 800, "batch": 24, "lr": 2e-3,
        "critic": {"steps": 1500}, "updates": 80, "rate": 1e-4, "samples": 64, "videos": 256,
    },
    "full": {
        "data": {"num_clips": 4000, "num_test": 512, "frames": 17, "size": [96, 96]},
        "model": {"preset": "small", "layers": 8, "heads": 16, "head_width": 24, "ffn": 1152, "channels": 96,
                  "preconditioned": True},
        "vae": {"steps": 2000}, "text": 128, "teacher": 6000, "batch": 64, "lr": 1e-3,
        "critic": {"steps": 3000, "width": 32}, "updates": 500, "rate": 1e-4, "samples": 128, "videos": 512,
    },
    "tiny": {
        "data": {"num_clips": 12, "num_test": 4, "frames": 9, "size": [64, 64]},
        "model": {"preset": "small", "layers": 2, "heads": 2, "head_width": 8, "ffn": 16, "channels": 8},
        "vae": {"steps": 1, "widths": [8, 8], "blocks": 1, "pca_clips": 12}, "text": 16, "teacher": 2, "batch": 2,
        "lr": 1e-3, "critic": {"steps": 1, "width": 2, "batch": 2}, "updates": 1, "rate": 1e-4, "samples": 2,
        "videos": 2,
    },
}  # fmt: skip
"""updates, rate: of every arm. samples: held-out captions of a validation. videos: of the captions it never sees."""
STEPS, GUIDANCE = 8, 1
"""How every arm is sampled."""


def row(out: Path, tier: str, seed: int) -> Row:
    """Make a world, a VAE, a model and a critic of the seed, train each arm, measure all."""
    own = SIZES[tier]
    text = {"use": "words", "width": own["text"]}
    recipe = {
        "model": {"use": "video_dit", **own["model"], "text_width": own["text"]},
        "text": text,
        "data": {"use": "shapes", **own["data"], "seed": seed},
        "seed": seed,
        "trackers": [{"use": "jsonl"}],
        "steps": steps(own, seed),
    }
    done = run(out.with_name(f"reward-{tier}") / f"seed{seed}", recipe, 1)
    found = {name: measured(done / step_name(name) / "bundle", own, seed) for name in TABLE.paper}
    return {**found, "floors": floors(done / "start" / "bundle", own)}


def steps(own: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return the recipe's steps: every arm begins with ``start``."""
    sampled = {"sampling_steps": STEPS, "guidance": GUIDANCE}
    common = {"batch": own["batch"], "checkpoint_every": 500, **sampled}
    first = {"use": "flow", "steps": own["teacher"], "lr": own["lr"], "decay": 0.05, "warmup": min(20, own["teacher"])}
    found: list[dict[str, Any]] = [
        {"latent": vae_of(own), "name": "vae"},
        {"distill": {**first, **common}, "name": "start"},
    ]
    arm = {"steps": own["updates"], "lr": own["rate"], "warmup": 0, **common}
    for name in ("flow", *REWARDED):
        how = {**arm, **({"use": "flow"} if name == "flow" else rewarded(own, seed, REWARDED[name]))}
        found.append({"distill": how, "name": step_name(name), "input": "start"})
    return found


def rewarded(own: Mapping[str, Any], seed: int, last: int) -> dict[str, Any]:
    """Return the options of a step with a reward: the best for the reader is the result."""
    look = {"every": max(1, own["updates"] // 8), "samples": own["samples"], "result": "best"}
    judged = {"reward": critic(own, seed), "judge": "reader", "validation": look}
    return {"use": "reward", "last_steps": last, **judged}


def critic(own: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the critic of a seed."""
    return {"use": "shapes", "seed": seed, **own["critic"]}


def step_name(arm: str) -> str:
    """Name an arm's step."""
    return arm.replace(" K=", "-")


@torch.no_grad()
def measured(bundle: Path, own: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Measure what a bundle samples of held-out captions, from the same noise in every arm."""
    context, denoiser = opened(str(bundle), bundle)
    parts = {"critic": critic(own, seed), "accuracy": "reader"}
    asked = {name: make_part("reward", each, installed()).build().create(context) for name, each in parts.items()}
    truths = asked_of(context, own)
    captions = list(truths) * max(1, own["videos"] // len(truths))
    for each in asked.values():
        each.truths |= truths
    flow, text, codec = context.input.flow, context.text().eval(), context.input.codec().eval()
    yes: dict[str, list[Tensor]] = {name: [] for name in asked}
    for first in range(0, len(captions), 16):
        some = captions[first : first + 16]
        noise = Streams(seed, 0, range(first, first + len(some))).normal("sample", context.latent_shape())
        video = codec.decode(flow.sample()(denoiser, noise, text.cond(some), flow.sigmas(), flow.guidance)).clamp(-1, 1)
        for name, each in asked.items():
            yes[name].append(torch.sigmoid(each(video, some)).mean(1))
    found = {name: torch.cat(shares) for name, shares in yes.items()}
    error = float(found["accuracy"].unflatten(0, (-1, len(truths))).mean(0).std()) / len(truths) ** 0.5
    return {**{name: float(shares.mean()) for name, shares in found.items()}, "error": error}


def asked_of(context: Context, own: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return scenes of held-out captions of which no validation, whose best is an arm's result, has seen one.

    This world of one object has few; each is sampled so often that there are ``videos``, or some fewer.
    """
    seen = {clip.caption for clip in list(context.clips("test"))[: own["samples"]]}
    return held_out(context.parts["data"].options, own["videos"], str(context.folder), seen, least=1)


@torch.no_grad()
def floors(bundle: Path, own: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy of who ignores captions, and of held-out clips decoded by the VAE."""
    context, _ = opened(str(bundle), bundle)
    reader = make_part("reward", "reader", installed()).build().create(context)
    codec, clips = context.input.codec().eval(), distinct(context.clips("test"))[: own["samples"]]
    real = to_video(torch.stack([torch.from_numpy(clip.pixels()) for clip in clips]))
    again = torch.cat([codec.decode(codec.encode(some)).clamp(-1, 1) for some in real.split(16)])
    answers = reader(again, [clip.caption for clip in clips])
    known = scores.floors(list(asked_of(context, own).values()))
    return {**known, "round_trip": float(torch.sigmoid(answers).mean())}


def finished(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows, and in how many seeds each arm's critic was deceived; the floors, over seeds."""

    def gained(row: Row, arm: str, measure: str) -> bool:
        return row[arm][measure] > row["start"][measure]

    hacked = {
        arm: sum(gained(row, arm, "critic") and not gained(row, arm, "accuracy") for row in rows) for arm in REWARDED
    }
    known = [row["floors"] for row in rows]
    mean = {name: round(sum(each[name] for each in known) / len(known), 4) for name in known[0]}
    return [{arm: row[arm] for arm in TABLE.paper} for row in rows], {"hacked": hacked, "floors": mean}


# ------------------------------------------------------------------ worked by hand


class Scaled(torch.nn.Module):
    """A velocity of one number: ``v = a·x``."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:  # noqa: ARG002 - a denoiser's
        """Return the velocity."""
        return self.a * x


def check() -> dict[str, Any]:
    """Return what is sampled from x = 1 at sigmas 1, 0.5, 0 with a = -1, and the slopes of -(x - 1)² by a."""
    found: dict[str, Any] = {}
    schedule = Flow(1.0, 2, 1.0)
    for name, last in (("full", 2), ("last", 1)):
        options = RewardOptions(
            reward=make_part("reward", "reader", installed()), last_steps=last, anchor_weight=0, recompute=last == 2
        )
        student: Denoiser = Scaled(-1.0)  # type: ignore[assignment]
        critic = torch.nn.Identity()
        critic.aspects = ()  # type: ignore[assignment]
        made = RewardObjective(options, student, tiny_text(), torch.nn.Identity(), {"reward": critic}, schedule)
        x = made.sampled(torch.ones(1, 1, 1, 1, 1, dtype=torch.float64), Cond({}, {}))
        found["x"] = round(float(x.detach()), 6)
        (slope,) = torch.autograd.grad(-(x - 1).square().sum(), student.a)
        found[name] = round(float(slope), 6)
    return found
