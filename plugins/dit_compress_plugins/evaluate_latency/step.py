"""Time the DiT call, the whole sampling loop and the VAE decoder; with ``against``, both models in turn."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import torch

from dit_compress.measure.base import DenoiserEvaluation
from dit_compress.measure.latency import interleaved, latency
from dit_compress.model.conditions import with_typical
from dit_compress.model.text import Captions
from dit_compress.step.context import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dit_compress.model.bundle import Bundle
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_latency import LatencyOptions


class LatencyEvaluation(DenoiserEvaluation):
    """Step ``evaluate: {use: latency, against: teacher}``."""

    options: LatencyOptions

    def plan(self, spec: Spec) -> Spec:
        """Check that there is a denoiser that can be sampled as its bundle means it."""
        super().plan(spec)
        spec.need_sampled()
        return spec

    def run(self, context: Context) -> Result:
        """Measure milliseconds, and with ``against`` the ratio of both sampling loops, medians of interleaved runs."""
        shape = context.latent_shape()
        ours = Timed(context.input, shape, self.options.batch, context.sampler())
        metrics = ours.figures(self.options.runs)
        rival = context.slot("against")
        loops: dict[str, Callable[[], object]] = {"ours": ours.sample}
        if rival is not None:
            loops["theirs"] = Timed(rival, shape, self.options.batch, context.sampler(rival.flow)).sample
        seconds = interleaved(loops, self.options.loops)
        metrics["sample_ms"] = statistics.median(seconds["ours"]) * 1e3
        if rival is not None:
            metrics["against_sample_ms"] = statistics.median(seconds["theirs"]) * 1e3
            pairs = zip(seconds["theirs"], seconds["ours"], strict=True)
            metrics["times_faster"] = statistics.median(theirs / mine for theirs, mine in pairs)
        return Result(metrics=metrics)


class Timed:
    """One bundle, ready to be timed on one batch."""

    def __init__(self, bundle: Bundle, shape: tuple[int, ...], batch: int, sampler: Callable[..., Tensor]) -> None:
        self.bundle, self.flow, self.sampler = bundle, bundle.flow, sampler
        self.denoiser, self.codec = bundle.denoiser().eval(), bundle.codec().eval()
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(batch, *shape, generator=generator)
        with torch.no_grad():
            captions = Captions(bundle.text()).cond([""] * batch)
            self.cond = with_typical(self.denoiser, captions, (shape[1], shape[2], shape[3]))

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Run the DiT loop as the bundle means it: its steps, its guidance."""
        return self.sampler(self.denoiser, self.noise, self.cond, self.flow.sigmas(), self.flow.guidance)

    @torch.no_grad()
    def call(self) -> Tensor:
        """Make one DiT call on the batch."""
        sigma_B = self.denoiser.possible(torch.full((len(self.noise),), 0.5))
        return self.denoiser(self.noise, sigma_B, self.cond)

    @torch.no_grad()
    def decode(self) -> Tensor:
        """Run the VAE decoder on the batch."""
        return self.codec.decode(self.noise)

    def figures(self, runs: int) -> dict[str, float]:
        """Take the medians of single calls; of the decoder where the latents stand for pixels."""
        dit = latency(self.call, runs)
        decoder = {"decode_ms": latency(self.decode, max(3, runs // 5)).median_ms} if self.codec.decodes else {}
        return {
            "dit_call_ms": dit.median_ms,
            "dit_call_p90_ms": dit.p90_ms,
            **decoder,
            "steps": self.flow.num_steps,
            "guidance": self.flow.guidance,
            "batch": len(self.noise),
        }
