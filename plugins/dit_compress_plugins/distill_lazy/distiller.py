"""Step ``distill: {use: lazy}``: gates are trained, and what they skip is measured on whole samplings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import write_json
from dit_compress.core.randomness import Streams
from dit_compress.model.flow import euler
from dit_compress.model.skipping import GATE, gated_modules, need_gates, need_ratio, skipping_euler
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import distill
from dit_compress_plugins.distill_lazy.objective import LazyObjective

if TYPE_CHECKING:
    from dit_compress.model.bundle import Bundle
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context, Result

SAMPLER = {"use": "lazy"}
FILE = "gates.json"


class LazyDistiller(DistillStep):
    """Gates learn to skip; the result is sampled lazily, in the steps of its gates."""

    samples_whole = True

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle as it will be sampled; UserError without gates, or where the ratio can't be reached."""
        planned = super().plan(spec)
        if not gated_modules(spec.outline().module):
            raise UserError("the denoiser has no gates to train", mend="Put 'transform: lazy' before this step")
        need_gates(spec.outline().module, spec.flow.sigmas())
        need_ratio(self.options.ratio, spec.flow.num_steps)
        return planned

    def flow(self, before: Flow) -> Flow:
        """Return the same schedule, with the lazy sampler."""
        return replace(before, sampler=SAMPLER)

    def objective(
        self,
        context: Context,
        student: Denoiser,
        teacher: Denoiser | None,  # noqa: ARG002 - the contract
        text: Captions,
    ) -> LazyObjective:
        """Return the objective of the roles student, whose gates are trained, and text."""
        return LazyObjective(self.options, student, text, context.input.flow)

    def num_parameters(self, student: Denoiser) -> tuple[int, int]:
        """Count the student's, and of them the gates; with LoRA its own besides."""
        gates = (value.numel() for name, value in student.named_parameters() if name.endswith(f".{GATE}"))
        held, trained = super().num_parameters(student)
        return held, sum(gates) + (trained if self.options.lora is not None else 0)

    def run(self, context: Context) -> Result:
        """Train, and measure what is skipped where."""
        result = distill(self, context)
        assert result.bundle is not None
        metrics, by_module = measured(result.bundle, context, self.options.rollouts)
        write_json(context.folder / FILE, {"sigmas": result.bundle.flow.sigmas(), "skipped": by_module})
        return replace(result, metrics={"target": self.options.ratio, **metrics}, files={**result.files, "gates": FILE})


@torch.no_grad()
def measured(bundle: Bundle, context: Context, count: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Sample held-out captions lazily and in full; return figures, and the share skipped by module and step.

    ``error``: mean squared distance of the latents to those of all steps in full; ``fewer_steps_error``: of Euler in
    as many steps as make as many calls, rounded up.
    """
    denoiser, text, flow = bundle.denoiser().eval(), context.text().eval(), bundle.flow
    samples = context.latents("test", text)
    index = list(range(min(count, len(samples))))
    cond = text(samples.tokens(index))
    noise = Streams(context.seed, 0, index).normal("rollout", context.latent_shape())
    lazy, computed = skipping_euler(denoiser, noise, cond, flow.sigmas(), flow.guidance)
    by_module = {path: (~rows).float().mean(1).tolist() for path, rows in computed.items()}
    by_step = [sum(column) / len(by_module) for column in zip(*by_module.values(), strict=True)]
    skipped = sum(by_step) / len(by_step)
    fewer = math.ceil(flow.num_steps * (1 - skipped) - 1e-6)
    full, other = (euler(denoiser, noise, cond, flow.sigmas(steps), flow.guidance) for steps in (flow.num_steps, fewer))
    metrics: dict[str, Any] = {"skipped": skipped, "error": float((lazy - full).square().mean())}
    metrics |= {"fewer_steps": fewer, "fewer_steps_error": float((other - full).square().mean())}
    metrics["skipped_by_step"] = by_step
    metrics["skipped_by_module"] = {path: sum(row) / len(row) for path, row in by_module.items()}
    return metrics, by_module
