"""The loss: what the next step gives unskipped, against what it gives mixed with the step before (LazyDiT).

Shapes: B batch, C channels, T H W latent frames, height, width, N steps, M gated modules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.model import flow
from dit_compress.model.skipping import GATE, answering, gate_values, mixed, need_gates
from dit_compress.train.distill import student_role
from dit_compress.train.lora import without
from dit_compress.train.losses import flow_loss
from dit_compress.train.objective import Phase, Role
from dit_compress_plugins.distill_lazy.controller import Controller, remember, tallies

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.text import Captions
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_lazy import LazyOptions

GATES = (f"*.{GATE}",)
"""Names of the parameters that are trained."""


class LazyObjective:
    """``mean|v_mixed - v|² + rho·mean(gate)`` at a step after the first, guided as the result is sampled."""

    def __init__(self, options: LazyOptions, student: Denoiser, text: Captions, schedule: Flow) -> None:
        self.student, self.text, self.guidance = student, text, schedule.guidance
        self.grid = torch.tensor(schedule.sigmas())
        self.num_steps = schedule.num_steps
        self.owners = need_gates(student.module, schedule.sigmas())
        # The first step skips nothing: the others have to skip more for the same share of all.
        self.controller = Controller(options.ratio * self.num_steps / (self.num_steps - 1), options.gain)
        student.add_module("controller", self.controller)  # of a trained role: in checkpoints, and in no bundle
        self.roles = {"student": replace(student_role(student, options), only=GATES), "text": Role(text)}
        self.phases = (Phase("lazy", ("student",), tell=self.told),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - one phase
        """Return the loss of one batch, its parts, and what means of gates are made of."""
        with torch.no_grad():
            cond = self.text(batch.tokens)
            noise = batch.streams.normal("noise", batch.x0.shape[1:])
            before_B = batch.streams.integers("step", self.num_steps - 1)
            grid = self.grid.to(batch.x0)
            x, kept = self.filled(flow.interpolate(batch.x0, noise, grid[before_B]), before_B, grid, cond)
            row_B = before_B + 1
            with without(self.student.module):  # LoRA makes up for what is skipped, and moves no target
                target = flow.guided(self.student, x, grid[row_B], cond, self.guidance)
        gates: dict[str, Tensor] = {}
        with answering(self.student.module, mixing(kept, row_B, gates)):
            velocity = flow.guided(self.student, x, grid[row_B], cond, self.guidance)
        gates_MB = torch.stack([gates[path] for path in self.owners])
        error = flow_loss(velocity, target)
        found = {"loss": error + self.controller.rho * gates_MB.mean(), "error": error}
        return {**found, "rho": self.controller.rho, **tallies(gates_MB, row_B, self.num_steps)}

    def filled(self, x: Tensor, before_B: Tensor, grid: Tensor, cond: Cond) -> tuple[Tensor, dict[str, Any]]:
        """Take one unskipped Euler step: the next ``x``, and what the gated modules gave on the way."""
        kept: dict[str, Any] = {}
        now_B, then_B = grid[before_B], grid[before_B + 1]
        with answering(self.student.module, keeping(kept)):
            velocity = flow.guided(self.student, x, now_B, cond, self.guidance)
        return flow.jump(x, velocity, now_B, then_B), kept

    def told(self, values: dict[str, float]) -> None:
        """Move the penalty's weight and the gates' means by what one update saw."""
        remember(list(self.owners.values()), values, self.num_steps)
        self.controller.follow(values["error"], values["skipped"])


def keeping(kept: dict[str, Any]) -> Callable[..., Any]:
    """Return an answer for gated modules: what they compute, kept."""

    def answer(path: str, _owner: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kept[path] = forward(*args, **kwargs)
        return kept[path]

    return answer


def mixing(kept: dict[str, Any], row_B: Tensor, gates: dict[str, Tensor]) -> Callable[..., Any]:
    """Return another: ``g·F(Z) + (1 - g)·y_prev``; the gates are noted ``[B]``."""

    def answer(path: str, owner: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        gates[path] = gate_values(owner, args, kwargs, row_B)
        return mixed(gates[path], forward(*args, **kwargs), kept[path])

    return answer
