"""The weight of the penalty, which follows the distance to a ratio, and running means of the gates.

Shapes: B batch, N steps, M gated modules.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dit_compress.model.skipping import COMPUTES, MEAN

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT = 0.9
"""Decay of a gate's running mean, over the updates that see its step."""
BEGINS = 0.1
"""The weight of the penalty at first, in errors of the first update: most gates stay above one half."""
MOST = math.log(1e6)
"""How far the weight goes from where it began, as a logarithm."""


class Controller(nn.Module):
    """Moves ``rho`` of ``error + rho·mean(gate)`` until the share of gates below one half is the target.

    Differs from the paper: rho is no option. It begins at a tenth of the first update's error and is multiplied by
    ``exp(gain·(target - share))`` after each. Buffers: checkpoints hold them.
    """

    rho: Tensor
    first: Tensor

    def __init__(self, target: float, gain: float) -> None:
        super().__init__()
        self.target, self.gain = target, gain
        self.register_buffer("rho", torch.zeros(()))
        self.register_buffer("first", torch.zeros(()))

    def follow(self, error: float, share: float) -> None:
        """Take the error and the share of skipped gates of one update."""
        if not self.first:
            self.first.fill_(error)
            self.rho.fill_(BEGINS * error)
            return
        moved = float(torch.log(self.rho / (BEGINS * self.first))) + self.gain * (self.target - share)
        self.rho.copy_(BEGINS * self.first * math.exp(max(-MOST, min(MOST, moved))))


def tallies(gates_MB: Tensor, row_B: Tensor, num_steps: int) -> dict[str, Tensor]:
    """Return the share of skipped gates, and what running means are made of: shares of the batch by step."""
    inside_NB = (torch.arange(num_steps, device=row_B.device)[:, None] == row_B).to(gates_MB.dtype)
    found = {"skipped": (gates_MB.detach() < COMPUTES).float().mean()}
    found |= {f"seen@{step}": value for step, value in enumerate(inside_NB.mean(1))}
    sums_MN = gates_MB.detach() @ inside_NB.T / len(row_B)
    return found | {
        f"gate@{place}@{step}": value for place, row in enumerate(sums_MN) for step, value in enumerate(row)
    }


def remember(owners: Sequence[nn.Module], values: dict[str, float], num_steps: int) -> None:
    """Take the shares out of what was logged, and move each gate's mean by them."""
    seen = [values.pop(f"seen@{step}") for step in range(num_steps)]
    for place, owner in enumerate(owners):
        mean_N = owner.get_buffer(MEAN)
        sums = [values.pop(f"gate@{place}@{step}") for step in range(num_steps)]
        before_N = mean_N.tolist()
        mean_N.copy_(torch.tensor([_moved(*each) for each in zip(before_N, sums, seen, strict=True)]))


def _moved(before: float, total: float, share: float) -> float:
    """Return a running mean after an update that saw the step in some share of the batch; 1: a mean of nothing yet."""
    if share == 0:
        return before
    return total / share if before == 1 else KEPT * before + (1 - KEPT) * total / share
