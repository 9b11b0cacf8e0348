"""Quality of a denoiser on a grid that never changes: equal clips, noise and noise levels for every variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from dit_compress.core.randomness import Streams
from dit_compress.model import flow
from dit_compress.train.losses import flow_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dit_compress.data.samples import Samples
    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.text import Captions

NUM_SIGMAS = 8
CHUNK = 16


@dataclass(frozen=True)
class Grid:
    """Questions and what should be answered.

    name: ``flow_loss`` (the velocity that the data has) or ``drift`` (that of the whole model, relative).
    """

    name: Literal["flow_loss", "drift"]
    rows: tuple[tuple[Tensor, Tensor, Cond, Tensor], ...]
    scale: float = 1.0

    @torch.no_grad()
    def loss(self, denoiser: Denoiser) -> float:
        """Return the mean squared error of the velocity over the grid; a function of the denoiser alone."""
        training = denoiser.training
        denoiser.eval()
        place = next(denoiser.parameters()).device
        total = count = 0.0
        for x, sigma, cond, target in self.rows:
            found = denoiser(x.to(place), sigma.to(place), cond.to(place))
            total += float(flow_loss(found, target.to(place))) * len(x)
            count += len(x)
        denoiser.train(training)
        return total / count / self.scale


def sigmas(schedule: Flow, count: int = NUM_SIGMAS) -> list[float]:
    """Return the noise levels of the grid: the middles of equal runs of the schedule."""
    return [float(schedule.drawn((place + 0.5) / count)) for place in range(count)]


@torch.no_grad()
def data_grid(
    samples: Samples,
    text: Captions,
    schedule: Flow,
    num_samples: int,
    possible: Callable[[Tensor], Tensor] = lambda sigma_B: sigma_B,
) -> Grid:
    """Make a grid of every clip at every noise level, each with noise of its own.

    possible: the nearest sigmas that a denoiser can be called with (``Denoiser.possible``).
    """
    rows = []
    for index in samples.batches(CHUNK, num_samples):
        x0, cond = samples.x0(index), text(samples.tokens(index))
        for place, sigma in enumerate(sigmas(schedule)):
            noise = Streams(0, place, index).normal("grid", x0.shape[1:])
            sigma_B = possible(torch.full((len(index),), sigma))
            rows.append((flow.interpolate(x0, noise, sigma_B), sigma_B, cond, flow.velocity(x0, noise)))
    return Grid("flow_loss", tuple(rows))


@torch.no_grad()
def drift_grid(denoiser: Denoiser, size_THW: tuple[int, int, int], num_samples: int, schedule: Flow) -> Grid:
    """Make a grid without data: noise in, the whole model's velocity out; the loss is relative to its mean square."""
    rows: list[Any] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for first in range(0, num_samples, CHUNK):
            size = min(CHUNK, num_samples - first)
            for sigma in sigmas(schedule):
                x, _, cond = denoiser.example(size, size_THW)
                sigma_B = denoiser.possible(torch.full((size,), sigma).to(x))
                rows.append((x, sigma_B, cond, denoiser(x, sigma_B, cond)))
    scale = sum(float(target.square().mean()) * len(target) for *_, target in rows) / sum(len(row[0]) for row in rows)
    return Grid("drift", tuple(rows), scale)
