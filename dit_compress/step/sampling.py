"""Videos from a bundle: in batches for evaluations, or one mp4 for the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.progress import progress
from dit_compress.core.randomness import Streams
from dit_compress.data.encode import Captions, to_pixels
from dit_compress.data.video import write_video
from dit_compress.model.bundle import Bundle
from dit_compress.model.flow import euler
from dit_compress.run import keys as graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np


class Generator:
    """A bundle, loaded and ready to make videos. Noise is a function of (seed, index of the video)."""

    def __init__(
        self, bundle: Bundle, latent_shape: tuple[int, int, int, int], sample: Callable[..., Any] = euler
    ) -> None:
        self.bundle, self.shape, self.sample = bundle, latent_shape, sample
        self.denoiser, self.codec = bundle.denoiser().eval(), bundle.codec().eval()
        self.text = Captions(bundle.text()).eval()

    @torch.no_grad()
    def __call__(
        self,
        captions: Sequence[str],
        *,
        seed: int,
        index: Sequence[int],
        num_steps: int | None = None,
        guidance: float | None = None,
    ) -> np.ndarray:
        """uint8 ``[B,F,Y,X,3]``, one video per caption."""
        flow = self.bundle.flow
        noise = Streams(seed, 0, index).normal("sample", self.shape)
        strength = flow.guidance if guidance is None else guidance
        latent = self.sample(self.denoiser, noise, self.text.cond(captions), flow.sigmas(num_steps), strength)
        return to_pixels(self.codec.decode(latent))


def generate_file(
    caption: str,
    model: Path,
    out: Path,
    sample: Callable[..., Any],
    *,
    num_steps: int | None,
    guidance: float | None,
    frames: int | None,
    size: tuple[int, int] | None,
    fps: float,
    seed: int,
) -> None:
    """One caption, one mp4."""
    bundle = Bundle.open(graph.resolve_bundle(model))
    video = bundle.spec.video
    if frames or size:
        base = video or (17, 0, 0)
        video = (frames or base[0], *(size or base[1:]))
    if video is None:
        raise UserError(
            "the bundle does not say its video size", where=str(bundle.path), mend="Give --frames and --size"
        )
    spec = replace(bundle.spec, video=video)
    channels = spec.codec().channels
    with progress("sampling", 1) as advance:
        generator = Generator(bundle, (channels, *spec.latent_size()), sample)
        pixels = generator([caption], seed=seed, index=[0], num_steps=num_steps, guidance=guidance)
        advance()
    write_video(out, pixels[0], fps)
