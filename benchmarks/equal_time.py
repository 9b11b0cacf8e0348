"""Codecs trained for equal processor time: one loss, one optimiser, one schedule, whatever a step costs.

The schedule goes by the share of the seconds that are spent, and a training ends with the step that spends the last of
them. Seconds are this process' processor time of what comes before the first step (PCA) and of the steps: forward,
backward, update. Clips are decoded before, and neither drawing a batch nor checkpoints nor measuring counts, in any
arm. A checkpoint keeps the seconds.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dit_compress.step.world import World
from dit_compress.train import checkpoint
from dit_compress.train.codec.objective import CodecObjective
from dit_compress.train.codec.options import CodecTraining, LossWeights
from dit_compress.train.loop import draw_batch
from dit_compress.train.trainee import trainees_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dit_compress.data.samples import Samples
    from dit_compress.train.objective import Batch
    from dit_compress.train.trainee import Trainee

LOSS = LossWeights(pixel=1.0, temporal=0.0, kl=1e-5, epsilon=0.0)
"""Of every arm: L1 and KL."""
WARM_UP, END = 0.05, 0.02
"""Share of the seconds over which the rate rises, and the share of the peak that is left at the end (cosine)."""
AGREE = 0.95
"""Least cosine of the gradients of two precisions: convolutions of some kinds are wrong in bfloat16 on some CPUs."""
SEED = 0


@dataclass(frozen=True)
class Training:
    """How long, and how. rate: peak learning rate. saved: seconds between checkpoints. begun: spent before step 0."""

    seconds: float
    rate: float
    batch: int
    saved: float = 60.0
    begun: float = 0.0


@dataclass(frozen=True)
class Spent:
    """What a training took. steps: updates. seconds: of processor time. bf16: what it computed in."""

    steps: int
    seconds: float
    bf16: bool


def train(codec: nn.Module, samples: Samples, how: Training, folder: Path, key: str) -> Spent:
    """Train a codec in place, or go on from the folder's checkpoint, for ``how.seconds``; ``key``: of what it is."""
    codec.requires_grad_(requires_grad=True)
    options = CodecTraining(lr=how.rate, batch=how.batch, losses=LOSS)
    objective = CodecObjective(codec, options, seed=SEED)
    trainee = trainees_of(objective.roles, World())["vae"]
    bf16 = agrees(objective, trainee, draw_batch(samples, how.batch, SEED, 0))
    step, spent = resumed(trainee, folder, key) or (0, how.begun)
    saved = spent
    while spent < how.seconds:
        batch = draw_batch(samples, how.batch, SEED, step)
        before = time.process_time()
        differentiate(objective, trainee, batch, bf16=bf16)
        trainee.update(rate(spent / how.seconds))
        spent += time.process_time() - before
        step += 1
        if spent - saved > how.saved or spent >= how.seconds:
            save(trainee, folder, step, {"key": key, "seconds": spent})
            saved = spent
    codec.eval().requires_grad_(requires_grad=False)
    return Spent(step, spent, bf16)


def rate(share: float) -> float:
    """Return the factor of the peak rate when a share of the seconds is spent."""
    if share < WARM_UP:
        return (share + 0.01) / (WARM_UP + 0.01)
    return END + (1 - END) * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - WARM_UP) / (1 - WARM_UP))))


def differentiate(objective: CodecObjective, trainee: Trainee, batch: Batch, *, bf16: bool) -> None:
    """Put the loss' gradient into the parameters."""
    trainee.train_only(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = objective.loss(objective.phases[-1], batch)["loss"]
    loss.backward()


def agrees(objective: CodecObjective, trainee: Trainee, batch: Batch) -> bool:
    """Tell whether the gradient in bfloat16 points where that in float32 does."""
    found = []
    for bf16 in (False, True):
        differentiate(objective, trainee, batch, bf16=bf16)
        gradients = [each.grad for each in trainee.parameters.values() if each.grad is not None]
        found.append(torch.cat([each.flatten() for each in gradients]).double())
        trainee.forget_gradients()
    return bool(functional.cosine_similarity(*found, dim=0) > AGREE)


# ------------------------------------------------------------------ checkpoints


def save(trainee: Trainee, folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint, and keep it alone."""
    checkpoint.save(folder, step, trainee.tensors(), state | {"updates": trainee.updates()}, World(), set())


def resumed(trainee: Trainee, folder: Path, key: str) -> tuple[int, float] | None:
    """Read the newest checkpoint; the steps and the seconds it has seen, None where there is none."""
    saved = checkpoint.newest(folder, key, World(), print)
    if saved is None:
        return None
    tensors = trainee.blanks(saved.names)
    checkpoint.read(saved, tensors, World())
    trainee.adopt(tensors, saved.state["updates"])
    return saved.step, float(saved.state["seconds"])
