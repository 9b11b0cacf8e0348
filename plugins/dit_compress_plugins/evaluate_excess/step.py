"""The mean squared distance of a denoiser's velocity to the exact one, on held-out draws at fixed noise levels.

Shapes: B batch, C T H W of a latent, D = C·T·H·W.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_compress.core.progress import progress
from dit_compress.core.randomness import Streams
from dit_compress.measure.base import DenoiserEvaluation
from dit_compress.measure.mixture import Mixture
from dit_compress.measure.quality import sigmas
from dit_compress.model import flow
from dit_compress.step.context import Result
from dit_compress.structure.modulation import need_any_timestep
from dit_compress_plugins.evaluate_excess.mixture import constant, exact, linear

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.data.samples import Samples
    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_excess import ExcessOptions


def velocities(mixture: Mixture, x_BD: Tensor, sigma: float, index: Sequence[int]) -> dict[str, Tensor]:
    """Return the exact velocity at ``x``, of the clips of these places, and those of denoisers that know less."""
    everything = mixture.means_GMD.flatten(0, 1)
    return {
        "exact": exact(x_BD, sigma, mixture.means_GMD[mixture.captions_N[list(index)]], mixture.spread),
        "caption_blind": exact(x_BD, sigma, everything, mixture.spread),
        "linear": linear(x_BD, sigma, everything, mixture.spread),
        "chance": constant(x_BD, everything),
    }


class ExcessEvaluation(DenoiserEvaluation):
    """Step ``evaluate: {use: excess}``."""

    options: ExcessOptions

    def plan(self, spec: Spec) -> Spec:
        """Check that there is a denoiser that can be called at any noise level."""
        super().plan(spec)
        need_any_timestep(spec.outline().module, "the excess")
        return spec

    def run(self, context: Context) -> Result:
        """Measure the excess, its floors, and the loss that the exact velocity has itself."""
        options, schedule, text = self.options, context.input.flow, context.text().eval()
        if options.shift is not None:
            schedule = replace(schedule, shift=options.shift)
        truth, samples = Mixture.of(context.clips("test")), context.latents("test", text)
        denoiser, levels = context.input.denoiser().eval(), sigmas(schedule, options.num_sigmas)
        count = min(options.num_draws, len(samples))
        batches = [range(first, min(first + options.batch, count)) for first in range(0, count, options.batch)]
        rows = [defaultdict[str, list[Tensor]](list) for _ in levels]
        with progress(context.name, count) as advance, torch.no_grad():
            for index in batches:
                cond = text(samples.tokens(index))
                for place, (sigma, row) in enumerate(zip(levels, rows, strict=True)):
                    for name, value in self.distances(denoiser, truth, samples, cond, place, sigma, index).items():
                        row[name].append(value)
                for _ in index:
                    advance()
        return Result(
            metrics=summarise(levels, [{name: torch.cat(parts) for name, parts in row.items()} for row in rows])
        )

    def distances(
        self,
        denoiser: Denoiser,
        truth: Mixture,
        samples: Samples,
        cond: Cond,
        place: int,
        sigma: float,
        index: Sequence[int],
    ) -> dict[str, Tensor]:
        """Return squared distances ``[B]`` at one noise level: to the exact velocity, and to that of the draw."""
        x0 = samples.x0(index)
        noise = Streams(self.options.seed, place, index).normal("excess", x0.shape[1:])
        sigma_B = torch.full((len(x0),), sigma)
        x = flow.interpolate(x0, noise, sigma_B)
        drawn_BD = flow.velocity(x0, noise).double().flatten(1)
        model_BD = denoiser(x, sigma_B, cond).double().flatten(1)
        known = velocities(truth, x.double().flatten(1), sigma, index)
        best_BD = known.pop("exact")
        found = {"excess": _distance(model_BD, best_BD), "loss": _distance(model_BD, drawn_BD)}
        found["irreducible"] = _distance(best_BD, drawn_BD)
        return found | {f"{name}_excess": _distance(value, best_BD) for name, value in known.items()}


def summarise(levels: Sequence[float], rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Average over draws and noise levels; ``explained`` is 1 for the exact velocity, 0 for the mean one.

    Errors are standard errors over draws, where there are two or more; ``explained`` is a quotient of means, and its
    error that of such. ``floors`` are what velocities that know less explain.

    Args:
        levels: the noise levels.
        rows: at each of them, the distances of every draw ``[N]`` by name.
    """
    each = {name: torch.stack([row[name] for row in rows]).mean(0) for name in rows[0]}
    mean: dict[str, Any] = {name: float(value_N.mean()) for name, value_N in each.items()}
    chance = mean["chance_excess"]
    share = mean["excess"] / chance
    mean["explained"] = 1 - share
    if len(each["excess"]) > 1:
        mean["excess_error"] = standard_error(each["excess"])
        mean["explained_error"] = standard_error(each["excess"] - share * each["chance_excess"]) / chance
    known = {name: mean[f"{name}_excess"] for name in ("linear", "caption_blind") if f"{name}_excess" in mean}
    mean["floors"] = {"mean_velocity": 0.0, **{name: 1 - value / chance for name, value in known.items()}}
    by_sigma = {name: [float(row[name].mean()) for row in rows] for name in rows[0]}
    return {**mean, "by_sigma": {"sigma": list(levels), **by_sigma}}


def standard_error(value_N: Tensor) -> float:
    """Return the standard error of the mean of ``[N]``, two or more."""
    return float(value_N.std() / len(value_N) ** 0.5)


def _distance(one_BD: Tensor, other_BD: Tensor) -> Tensor:
    return (one_BD - other_BD).square().mean(1)
