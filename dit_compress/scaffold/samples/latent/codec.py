"""A linear video codec: principal components of patches, each scaled to standard deviation 1.

Shapes: B batch, F frames of Y × X pixels, C channels, T H W latent frames, height, width; a patch has
P = 3 · frames · cell² values; N patches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from dit_compress.model.protocols import Codec
from dit_compress.model.spec import ComponentSpec
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result

    from dit_compress.scaffold.samples.latent import ExampleOptions

BATCH = 16
"""Clips that are looked at together."""
SMALLEST = 1e-4
"""Deviation below which a component counts as still; it is scaled no further."""


class ExampleCodec(nn.Module, Codec):
    """Patches → components, and back: two matrices. Change this: any network with the same four methods.

    The first frame is repeated, so that ``1 + frames·k`` frames are ``1 + k`` latent frames and one frame alone can
    be encoded. No tensor has more than five axes, which phones insist on.
    """

    def __init__(self, ratio: Sequence[int], channels: int) -> None:
        super().__init__()
        time, height, width = ratio
        self.ratio, self.channels = (time, height, width), channels
        patch = 3 * time * height * width
        self.analysis, self.synthesis = nn.Conv2d(patch, channels, 1), nn.Conv2d(channels, patch, 1)

    def patches(self, video_BCFYX: Tensor) -> Tensor:
        """Cut video ``[B,3,F,Y,X]`` into one row of P values per latent cell, ``[B·T,P,H,W]``."""
        time, cell, _ = self.ratio
        frames = torch.cat([video_BCFYX[:, :, :1].expand(-1, -1, time - 1, -1, -1), video_BCFYX], 2).transpose(1, 2)
        return functional.pixel_unshuffle(frames.reshape(-1, 3 * time, *frames.shape[-2:]), cell)

    def encode(self, video_BCFYX: Tensor) -> Tensor:
        """Encode video in [-1, 1] to a normalised latent ``[B,C,T,H,W]``."""
        found = self.analysis(self.patches(video_BCFYX))
        return found.unflatten(0, (video_BCFYX.shape[0], -1)).transpose(1, 2)

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode a normalised latent to video: what exporters trace."""
        time, cell, _ = self.ratio
        rows = self.synthesis(latent_BCTHW.transpose(1, 2).flatten(0, 1))
        frames = functional.pixel_shuffle(rows, cell)
        video = frames.reshape(latent_BCTHW.shape[0], -1, 3, *frames.shape[-2:]).transpose(1, 2)
        return video[:, :, time - 1 :]

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Do the same; a codec for large videos may work in tiles here."""
        return self(latent_BCTHW)


class ExampleStep:
    """Step ``latent: {use: example}``."""

    def __init__(self, options: ExampleOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Give the bundle a codec; the video must fit its ratio."""
        ratio = [self.options.frames, self.options.cell, self.options.cell]
        config = {"ratio": ratio, "channels": self.options.channels}
        after = replace(spec, latent=ComponentSpec("latent", "example", config))
        if spec.video is not None:
            after.latent_size()
        return after

    def run(self, context: Context) -> Result:
        """Fit, give the bundle. Change this: train here, with ``dit_compress.train.loop.fit`` and an objective."""
        spec = self.plan(context.spec())
        codec = self.from_config(spec.need_latent().config)
        samples = context.pixels("train")
        count = min(len(samples), self.options.clips)
        fit_components(codec, [samples.x0(range(first, min(first + BATCH, count))) for first in range(0, count, BATCH)])
        return context.give({"latent": codec}, spec=spec)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> ExampleCodec:
        """Make a codec without weights; works on the meta device."""
        return ExampleCodec(config["ratio"], config["channels"])


@torch.no_grad()
def fit_components(codec: ExampleCodec, videos: Sequence[Tensor]) -> None:
    """Set the two matrices to the largest principal components of the videos' patches.

    ``latent = A (patch - mean) / std`` and ``patch = Aᵀ (latent · std) + mean``, A orthonormal.
    """
    rows_PN = torch.cat([codec.patches(video).transpose(0, 1).flatten(1).double() for video in videos], 1)
    mean_P, covariance_PP = rows_PN.mean(1), torch.cov(rows_PN, correction=0)
    values, vectors = torch.linalg.eigh(covariance_PP)
    components_CP = vectors.T.flip(0)[: codec.channels]
    std_C = values.flip(0)[: codec.channels].clamp_min(SMALLEST**2).sqrt()
    analysis_CP = components_CP / std_C[:, None]
    codec.analysis.load_state_dict({"weight": analysis_CP[..., None, None], "bias": -analysis_CP @ mean_P})
    synthesis_PC = (components_CP * std_C[:, None]).T
    codec.synthesis.load_state_dict({"weight": synthesis_PC[..., None, None], "bias": mean_P})
