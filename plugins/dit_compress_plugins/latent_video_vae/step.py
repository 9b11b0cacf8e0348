"""The step ``latent: {use: video_vae}``: build, start from PCA, train, measure, give the codec."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from dit_compress.core.errors import UserError
from dit_compress.model.spec import ComponentSpec
from dit_compress.train.loop import fit
from dit_compress_plugins.latent_video_vae.likeness import Likeness
from dit_compress_plugins.latent_video_vae.objective import (
    VideoVAEObjective,
    initialise,
    measure_statistics,
)
from dit_compress_plugins.latent_video_vae.vae import VideoVAE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor, nn

    from dit_compress.data.samples import Samples
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress_plugins.latent_video_vae import VideoVAEOptions


class VideoVAEStep:
    """Trains a :class:`VideoVAE` on the recipe's clips."""

    def __init__(self, options: VideoVAEOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Give the bundle a codec; the video must fit its ratio."""
        with torch.device("meta"):
            vae = self._vae()
        after = replace(spec, latent=ComponentSpec("latent", "video_vae", config_of(vae)))
        if spec.video is not None:
            after.latent_size()
        return after

    def run(self, context: Context) -> Result:
        """Start from PCA, train, measure the latents' statistics, give the bundle.

        Of several processes the first looks at clips before and after training; the loop hands its VAE to the others.
        """
        vae, first = self.create(context.seed), not context.world.rank
        likeness = self.likeness(vae, context)
        samples, held_out = context.pixels("train"), context.pixels("test")
        count = min(len(samples), self.options.pca_clips)
        linear_db = 0.0
        if first:
            self.initialise(vae, chunks(samples, count))
            linear_db = round_trip_db(vae, held_out)
        if self.options.steps:
            fit(self.objective(vae, likeness), samples, self.options, context)
        vae = self.finish(vae.float(), chunks(samples, count))
        spec = replace(context.spec(), latent=ComponentSpec("latent", "video_vae", config_of(vae)))
        psnr_db = round_trip_db(vae, held_out)
        # Before training the VAE is linear PCA with as many channels: the baseline costs one pass.
        metrics = {"psnr_db": psnr_db, "pca_psnr_db": linear_db, "above_pca_db": psnr_db - linear_db}
        return context.give({"latent": vae}, spec=spec, metrics=metrics)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> VideoVAE:
        """Make an empty VAE of a saved config, statistics included; works on the meta device."""
        return VideoVAE.from_config(dict(config))

    def create(self, seed: int = 0) -> VideoVAE:
        """Make a VAE of the options, the same for the same seed, in the memory format that trains fastest."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = self._vae()
        return vae.to(memory_format=torch.channels_last)  # diffusers' ``to`` imports peft: a plan does without

    def _vae(self) -> VideoVAE:
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

    def likeness(self, vae: VideoVAE, context: Context) -> Likeness | None:
        """Return the larger VAE of the slot ``teacher``, where its features count."""
        given, wanted = context.slot("teacher"), self.options.losses.features
        if given is None and wanted:
            raise UserError(
                "'features' has a weight, and there is no teacher to take them from",
                mend="Name a bundle with a larger VAE as 'teacher' beside 'latent', or set the weight to 0",
            )
        if given is None or not wanted:
            return None
        return Likeness(vae, cast("nn.Module", given.codec()), context.seed)

    def objective(self, vae: VideoVAE, likeness: Likeness | None = None) -> VideoVAEObjective:
        """Make what the training loop runs for ``options.steps`` steps of ``options.batch`` clips."""
        return VideoVAEObjective(vae, self.options, likeness)

    def finish(self, vae: VideoVAE, videos: Iterable[Tensor]) -> VideoVAE:
        """Write the latent's statistics over some training clips into the config, and freeze."""
        measure_statistics(vae, videos)
        return vae.eval().requires_grad_(requires_grad=False)


def config_of(vae: VideoVAE) -> dict[str, Any]:
    """Return the JSON config of a VAE, statistics included."""
    return {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}


def chunks(samples: Samples, count: int, size: int = 32) -> Iterator[Tensor]:
    """Yield the first ``count`` training clips in batches."""
    for first in range(0, count, size):
        yield samples.x0(range(first, min(first + size, count)))


@torch.no_grad()
def round_trip_db(vae: VideoVAE, samples: Samples, most: int = 64) -> float:
    """Return the mean PSNR in dB of held-out clips after encoding and decoding, at 8 bits."""
    training = vae.training
    vae.eval()
    decibels = []
    for video in chunks(samples, min(len(samples), most), 8):
        error = (to_8_bits(vae.decode(vae.encode(video))) - to_8_bits(video)).square().flatten(1).mean(1)
        decibels.append(10 * torch.log10(1 / error.clamp_min(1e-10)))
    vae.train(training)
    return float(torch.cat(decibels).mean())


def to_8_bits(video: Tensor) -> Tensor:
    """Round [-1, 1] to 0 … 1 in steps of 1/255."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round() / 255
