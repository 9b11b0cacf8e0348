"""The step ``latent: {use: video_vae}``: as every codec is trained, from PCA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.train.codec.step import CodecStep, round_trip_db
from dit_compress_plugins.latent_video_vae.start import initialise
from dit_compress_plugins.latent_video_vae.vae import VideoVAE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from dit_compress.data.samples import Samples


class VideoVAEStep(CodecStep):
    """Trains a :class:`VideoVAE` on the recipe's clips."""

    plugin = "video_vae"

    @property
    def looked_at(self) -> int:
        """Training clips that PCA and statistics are measured on."""
        return self.options.pca_clips

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> VideoVAE:
        """Make an empty VAE of a saved config, statistics included; works on the meta device."""
        return VideoVAE.from_config(dict(config))

    def network(self) -> VideoVAE:
        """Make a codec of the options."""
        options = self.options
        return VideoVAE(
            options.ratio_numbers(),
            options.channels,
            options.widths,
            options.blocks,
            tile=options.tile,
            chunk=options.chunk,
        )

    def initialise(self, vae: VideoVAE, videos: Iterable[Tensor]) -> None:
        """Make the VAE the PCA of ``options.pca_clips`` clips, given in batches ``[B,3,F,Y,X]`` in [-1, 1]."""
        initialise(vae, videos, self.options.whitening)

    def begin(self, codec: VideoVAE, videos: Iterable[Tensor], held_out: Samples) -> dict[str, float]:
        """Start from PCA. Before training the VAE is linear PCA with as many channels: the baseline costs one pass."""
        self.initialise(codec, videos)
        return {"pca_psnr_db": round_trip_db(codec, held_out)}

    def measured(self, codec: VideoVAE, held_out: Samples, began: dict[str, float]) -> dict[str, float]:
        """Return PSNR, that of PCA, and the difference."""
        found = super().measured(codec, held_out, began)
        return found | {"above_pca_db": found["psnr_db"] - began.get("pca_psnr_db", 0.0)}
