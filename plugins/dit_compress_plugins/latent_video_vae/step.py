"""The step ``latent: {use: video_vae}``: build, start from PCA, train, measure, give the codec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress_plugins.latent_video_vae.objective import (
    VideoVAEObjective,
    initialise,
    measure_statistics,
)
from dit_compress_plugins.latent_video_vae.vae import VideoVAE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from dit_compress_plugins.latent_video_vae import VideoVAEOptions


class VideoVAEStep:
    """Trains a :class:`VideoVAE` on the recipe's clips."""

    def __init__(self, options: VideoVAEOptions) -> None:
        self.options = options

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> VideoVAE:
        """An empty VAE of a saved config, statistics included; works on the meta device."""
        return VideoVAE.from_config(dict(config))

    def create(self, seed: int = 0) -> VideoVAE:
        """A new VAE of the options, the same for the same seed, in the memory format that trains fastest."""
        options = self.options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = VideoVAE(options.ratio_numbers(), options.channels, options.widths, options.blocks)
        return vae.to(memory_format=torch.channels_last)

    def initialise(self, vae: VideoVAE, videos: Iterable[Tensor]) -> None:
        """Make the VAE the PCA of ``options.pca_clips`` clips, given in batches ``[B,3,F,Y,X]`` in [-1, 1]."""
        initialise(vae, videos, self.options.whitening)

    def objective(self, vae: VideoVAE) -> VideoVAEObjective:
        """What the training loop runs for ``options.steps`` steps of ``options.batch`` clips."""
        return VideoVAEObjective(vae, self.options)

    def finish(self, vae: VideoVAE, videos: Iterable[Tensor]) -> VideoVAE:
        """Write the latent's statistics over some training clips into the config, and freeze."""
        measure_statistics(vae, videos)
        return vae.eval().requires_grad_(requires_grad=False)
