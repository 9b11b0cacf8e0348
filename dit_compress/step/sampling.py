"""Videos from a bundle: in batches for evaluations, or one mp4 for the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.randomness import Streams
from dit_compress.data.samples import to_pixels
from dit_compress.model.conditions import FIRST, FIRST_PADDED, encode_firsts
from dit_compress.model.protocols import decoded
from dit_compress.model.scene import Scene, shown
from dit_compress.model.text import Captions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from torch import Tensor

    from dit_compress.model.bundle import Bundle


class Generator:
    """A bundle, loaded and ready to make videos. Noise is a function of (seed, index of the video).

    sample: another sampler than the bundle's. notes: what it said of each video so far, where it says something.
    """

    def __init__(
        self, bundle: Bundle, latent_shape: tuple[int, int, int, int], sample: Callable[..., Any] | None = None
    ) -> None:
        self.bundle, self.shape, self.sample = bundle, latent_shape, sample or bundle.flow.sample()
        self.denoiser, self.codec = bundle.denoiser().eval(), bundle.codec().eval()
        self.text = Captions(bundle.text()).eval()
        self.notes: list[dict[str, float]] = []

    @torch.no_grad()
    def __call__(
        self,
        captions: Sequence[str],
        *,
        seed: int,
        index: Sequence[int],
        num_steps: int | None = None,
        guidance: float | None = None,
        first_BCYX: Tensor | None = None,
    ) -> np.ndarray:
        """Sample uint8 ``[B,F,Y,X,3]``, one video per caption.

        first_BCYX: their first frames in [-1, 1], for denoisers that take their latents, and decoders that take them.
        """
        flow = self.bundle.flow
        noise = Streams(seed, 0, index).normal("sample", self.shape)
        strength = flow.guidance if guidance is None else guidance
        scene = Scene(self.codec, captions, self.text, self.notes)
        sample = shown(self.sample, scene)
        cond = self.text.cond(captions)
        if first_BCYX is not None and (self.takes_first or not self.codec.takes_first):
            cond = cond.beside(encode_firsts(self.denoiser, self.codec, self.text.encoder, first_BCYX, self._frames()))
        latent = sample(self.denoiser, noise, cond, flow.sigmas(num_steps), strength)
        return to_pixels(decoded(self.codec, latent, first_BCYX if self.codec.takes_first else None))

    @property
    def takes_first(self) -> bool:
        """Tell whether the denoiser takes the latents of a first frame."""
        return bool({FIRST, FIRST_PADDED} & self.denoiser.conditions.keys())

    def _frames(self) -> int:
        """Return the frames of the videos."""
        ratio = self.codec.ratio[0]
        lead, _ = self.codec.frame_rule or (1, ratio)
        return lead + (self.shape[1] - 1) * ratio
