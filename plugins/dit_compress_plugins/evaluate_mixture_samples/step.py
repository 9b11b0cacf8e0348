"""Samples of a few captions, against exact ones of their mixtures, and both against their floors.

Shapes: G captions, N samples of each, M modes of each, D numbers of a latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.progress import progress
from dit_compress.core.randomness import Streams
from dit_compress.data.clips import distinct
from dit_compress.measure.base import DenoiserEvaluation
from dit_compress.measure.mixture import Mixture
from dit_compress.step.context import Result
from dit_compress_plugins.evaluate_mixture_samples.distances import by_modes, lines, near, sliced_wasserstein

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dit_compress.data.clips import Clip
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_mixture_samples import MixtureSamplesOptions


def evenly(clips: Sequence[Clip], count: int) -> Mixture:
    """Read the mixtures of ``count`` captions, evenly spread over those there are: a clip of each."""
    clips = distinct(clips)
    order = Mixture.of(clips).captions_N.argsort().tolist()
    count = min(count, len(order))
    return Mixture.of([clips[order[place * len(order) // count]] for place in range(count)])


def draw(mixture: Mixture, count: int, seed: int, stream: str) -> Tensor:
    """Draw exact samples ``[G,N,D]``: of each caption's modes by turns, so that none is short by chance."""
    captions, modes, width = mixture.own_NMD.shape
    noise = Streams(seed, 0, range(captions)).normal(stream, (count, width)).double()
    return mixture.own_NMD[:, torch.arange(count) % modes] + mixture.spread * noise


class MixtureSamples(DenoiserEvaluation):
    """Step ``evaluate: {use: mixture_samples}``."""

    options: MixtureSamplesOptions

    def plan(self, spec: Spec) -> Spec:
        """Check that there is a denoiser that can be sampled so."""
        super().plan(spec)
        spec.need_sampled(self.options.num_steps)
        return spec

    def run(self, context: Context) -> Result:
        """Measure what the bundle samples, exact samples (the floor) and noise (chance)."""
        options = self.options
        mixture = evenly(context.clips("test"), options.num_captions)
        means_GMD = mixture.own_NMD
        captions, _, width = means_GMD.shape
        exact, other = (draw(mixture, options.samples_per_caption, options.seed, name) for name in ("exact", "other"))
        noise = Streams(options.seed, 0, range(captions)).normal("chance", exact.shape[1:]).double()
        directions = Streams(options.seed, 0, range(options.directions)).normal("directions", (width,)).double()
        drawn = self.sampled(context, mixture).double().flatten(2)
        radius = near(mixture.spread, width, options.radius)
        found: dict[str, Any] = {}
        for prefix, samples in (("", drawn), ("floor_", other), ("chance_", noise)):
            figures = by_modes(samples, means_GMD, mixture.spread, radius)
            away_G = sliced_wasserstein(samples, exact, lines(directions))
            figures["sliced_wasserstein"] = float(away_G.mean())
            if not prefix and captions > 1:
                figures["sliced_wasserstein_error"] = float(away_G.std() / captions**0.5)
            found |= {f"{prefix}{name}": value for name, value in figures.items()}
        found |= explained(found)
        return Result(metrics={**found, "captions": captions, "samples": drawn.shape[0] * drawn.shape[1]})

    def sampled(self, context: Context, mixture: Mixture) -> Tensor:
        """Sample every caption, ``[G,N,C,T,H,W]``; noise is a function of (seed, place)."""
        options, flow = self.options, context.input.flow
        guidance = flow.guidance if options.guidance is None else options.guidance
        sigmas, sampler = flow.sigmas(options.num_steps), context.sampler()
        denoiser, text = context.input.denoiser().eval(), context.text().eval()
        captions = [caption for caption in mixture.names for _ in range(options.samples_per_caption)]
        made = []
        with progress(context.name, len(captions)) as advance, torch.no_grad():
            for first in range(0, len(captions), options.batch):
                some = captions[first : first + options.batch]
                noise = Streams(options.seed, 0, range(first, first + len(some))).normal(
                    "sample", context.latent_shape()
                )
                made.append(sampler(denoiser, noise, text.cond(some), sigmas, guidance))
                for _ in some:
                    advance()
        return torch.cat(made).unflatten(0, (len(mixture.names), options.samples_per_caption))


def explained(found: Mapping[str, float]) -> dict[str, Any]:
    """Return ``explained``, 0 where samples are as far as noise and about 1 where they are exact, its error and floor.

    The exact ones that make the best distance take modes by turns: independent exact samples come to 0.99.
    """
    best, chance = found["floor_sliced_wasserstein"], found["chance_sliced_wasserstein"]
    figures: dict[str, Any] = {"explained": 1 - (found["sliced_wasserstein"] - best) / (chance - best)}
    if "sliced_wasserstein_error" in found:
        figures["explained_error"] = found["sliced_wasserstein_error"] / abs(chance - best)
    return {**figures, "floors": {"noise": 0.0}}
