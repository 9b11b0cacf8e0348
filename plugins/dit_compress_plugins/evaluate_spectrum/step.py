"""Encode test clips, and measure the spectrum of their latents, and of another VAE's where one is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.core.errors import UserError
from dit_compress.core.progress import progress
from dit_compress.data.buckets import buckets_of
from dit_compress.data.clips import distinct
from dit_compress.data.samples import to_video
from dit_compress.step.context import Result
from dit_compress_plugins.evaluate_spectrum.spectrum import by_band, power, upper_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.data.clips import Clip
    from dit_compress.model.protocols import Codec
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_spectrum import SpectrumOptions
    from dit_compress_plugins.evaluate_spectrum.spectrum import Sizes


class SpectrumEvaluation:
    """Step ``evaluate: {use: spectrum}``."""

    def __init__(self, options: SpectrumOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Check that there is a VAE whose latents have frequencies."""
        spec.need_latent()
        if spec.video is not None:
            _, height, width = spec.latent_size()
            if min(height, width) < 2:
                raise UserError(
                    f"latents of {height}x{width} cells have no spectrum",
                    mend="Give clips of at least two latent cells a side",
                )
        return spec

    def run(self, context: Context) -> Result:
        """Measure the latents of test clips."""
        clips, other = distinct(context.clips("test"))[: self.options.num_clips], context.slot("against")
        codecs: dict[str, Codec] = {"own": context.input.codec()}
        if other is not None:
            codecs["against"] = other.codec()
        with progress(context.name, len(clips) * len(codecs)) as advance:
            powers = {name: self._power(codec.eval(), clips, advance) for name, codec in codecs.items()}
        bands, own = self.options.bands, powers["own"]
        white = [(share, torch.ones_like(power_HW)) for share, power_HW in own]
        metrics: dict[str, Any] = {"upper_share": upper_share(own), "white_upper_share": upper_share(white)}
        if other is not None:
            metrics["against_upper_share"] = upper_share(powers["against"])
        found = {name: by_band(value, bands) for name, value in powers.items()}
        middles = [(band + 0.5) / bands for band in range(bands)]
        return Result(metrics=metrics | {"latent_power": {"frequency": middles, **found}, "num_clips": len(clips)})

    @torch.no_grad()
    def _power(self, codec: Codec, clips: Sequence[Clip], advance: Any) -> Sizes:
        """Average the power of each frequency over the clips' latents of each size, beside its share of the clips."""
        found: list[tuple[float, Tensor]] = []
        for places in buckets_of(clips).values():
            total: Tensor | float = 0.0
            for first in range(0, len(places), self.options.batch):
                chunk = [clips[place] for place in places[first : first + self.options.batch]]
                video = to_video(torch.from_numpy(np.stack([clip.pixels() for clip in chunk])))
                total = total + power(codec.encode(video)) * len(chunk) / len(places)
                for _ in chunk:
                    advance()
            assert isinstance(total, torch.Tensor)
            found.append((len(places) / len(clips), total))
        return found
