"""The step that makes and trains a causal codec: build, begin, train, measure, give it.

Shapes: video ``[B,3,F,Y,X]`` in [-1, 1], latent ``[B,C,T,H,W]``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from einops import rearrange

from dit_compress.core.errors import UserError
from dit_compress.model.codec.causal import CausalCodec, channel_statistics, config_of
from dit_compress.model.protocols import decoded
from dit_compress.model.spec import ComponentSpec
from dit_compress.train.codec.likeness import Likeness
from dit_compress.train.codec.objective import CodecObjective
from dit_compress.train.loop import fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor, nn

    from dit_compress.data.samples import Samples
    from dit_compress.model.protocols import Codec
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress.train.codec.options import CodecOptions


STATISTICS_CLIPS = 512


class CodecStep:
    """Trains a :class:`CausalCodec` on the recipe's clips. A plugin adds :meth:`network`, and what else differs.

    plugin: its name.
    """

    plugin: str

    def __init__(self, options: CodecOptions) -> None:
        self.options: Any = options

    @property
    def looked_at(self) -> int:
        """Training clips that are looked at before training, and that statistics are measured on."""
        return STATISTICS_CLIPS

    def plan(self, spec: Spec) -> Spec:
        """Give the bundle a codec; the video must fit its ratio."""
        with torch.device("meta"):
            codec = self.network()
        after = replace(spec, latent=ComponentSpec("latent", self.plugin, config_of(codec)))
        if spec.video is not None:
            check_scales(after.latent_size(), self.options.losses.scales if self.options.losses.scale else ())
        return after

    def run(self, context: Context) -> Result:
        """Begin, train, measure the latents' statistics, give the bundle.

        Of several processes the first looks at clips before and after training; the loop hands its codec to the others.
        """
        codec, first, device = self.create(context.seed), not context.world.rank, context.world.device
        likeness = self.likeness(codec, context)
        samples, held_out = context.pixels("train"), context.pixels("test")
        count = min(len(samples), self.looked_at)
        began = self.begin(codec, chunks(samples, count), held_out) if first else {}
        if self.options.steps:
            fit(self.objective(codec, likeness, context.seed), samples, self.options, context)
        codec = self.finish(codec.float().to(device), chunks(samples, count))
        spec = replace(context.spec(), latent=ComponentSpec("latent", self.plugin, config_of(codec)))
        metrics = self.measured(codec, held_out, began)
        return context.give({"latent": codec.cpu()}, spec=spec, metrics=metrics)

    def network(self) -> Any:
        """Make a codec of the options; works on the meta device."""
        raise NotImplementedError

    def create(self, seed: int = 0) -> Any:
        """Make a codec of the options, the same for the same seed, in the memory format that trains fastest."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            codec = self.network()
        return codec.to(memory_format=torch.channels_last)  # diffusers' ``to`` imports peft: a plan does without

    def begin(self, codec: Any, videos: Iterable[Tensor], held_out: Samples) -> dict[str, float]:  # noqa: ARG002
        """Do what comes before training, and return figures of it for :meth:`measured`."""
        return {}

    def measured(self, codec: Any, held_out: Samples, began: dict[str, float]) -> dict[str, float]:
        """Return the step's metrics: the PSNR of held-out clips, and what was measured before training."""
        return {"psnr_db": round_trip_db(codec, held_out), **began}

    def likeness(self, codec: CausalCodec, context: Context) -> Likeness | None:
        """Return the larger VAE of the slot ``teacher``, where its features count."""
        given, wanted = context.slot("teacher"), self.options.losses.features
        if given is None and wanted:
            raise UserError(
                "'features' has a weight, and there is no teacher to take them from",
                mend="Name a bundle with a larger VAE as 'teacher' beside 'latent', or set the weight to 0",
            )
        if given is None or not wanted:
            return None
        return Likeness(codec, cast("nn.Module", given.codec()), context.seed)

    def objective(self, codec: CausalCodec, likeness: Likeness | None = None, seed: int = 0) -> CodecObjective:
        """Make what the training loop runs for ``options.steps`` steps of ``options.batch`` clips."""
        return CodecObjective(codec, self.options, likeness, seed=seed)

    def finish(self, codec: Any, videos: Iterable[Tensor]) -> Any:
        """Write the latent's statistics over some training clips into the config, and freeze."""
        measure_statistics(codec, videos)
        return codec.eval().requires_grad_(requires_grad=False)


def check_scales(latent_THW: Sequence[int], scales: Sequence[int]) -> None:
    """Raise a UserError where a latent can't be made so many times smaller along height and width."""
    _, height, width = latent_THW
    for scale in scales:
        if height % scale or width % scale:
            raise UserError(
                f"latents of {height}x{width} cells can't be made {scale} times smaller, as 'scales' in 'losses' asks",
                mend=f"Take clips whose height and width in cells are divisible by {scale}, or other 'scales'",
            )


@torch.no_grad()
def measure_statistics(codec: CausalCodec, videos: Iterable[Tensor]) -> None:
    """Write the raw latents' mean and std per channel into the codec's config."""
    encoded = (codec.encode_raw(beside(codec, video)) for video in videos)
    raw = [rearrange(latent, "B C T H W -> 1 C (B T H W) 1 1") for latent in encoded]
    mean_C, std_C = channel_statistics(torch.cat(raw, dim=2))
    codec.set_statistics(mean_C.tolist(), std_C.tolist())


def chunks(samples: Samples, count: int, size: int = 32) -> Iterator[Tensor]:
    """Yield the first ``count`` clips in batches, each of one size; no images, where there are others."""
    for index in samples.batches(size, count, images=False):
        yield samples.x0(index)


@torch.no_grad()
def round_trip_db(codec: Codec, samples: Samples, most: int = 64, *, given: bool = False, later: bool = False) -> float:
    """Return the mean PSNR in dB of clips after encoding and decoding, at 8 bits.

    Args:
        codec: any.
        samples: held-out clips.
        most: how many of them.
        given: hand the decoder the first frame.
        later: leave the first frame out of the comparison.
    """
    module: Any = codec
    training = module.training
    module.eval()
    decibels = []
    for clips in chunks(samples, min(len(samples), most), 8):
        video = beside(module, clips)
        back = decoded(codec, codec.encode(video), video[:, :, 0] if given else None)
        decibels.append(psnr_8_bits(back[:, :, int(later) :], video[:, :, int(later) :]))
    module.train(training)
    return float(torch.cat(decibels).mean())


def beside(module: nn.Module, video: Tensor) -> Tensor:
    """Return a video on the device and in the type of a module's weights; as it is, where there are none."""
    weights = next(module.parameters(), None)
    return video if weights is None else video.to(weights)


def psnr_8_bits(video: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB per clip ``[B]``, at 8 bits, at most 100."""
    error_B = (to_8_bits(video) - to_8_bits(target)).square().flatten(1).mean(1)
    return 10 * torch.log10(1 / error_B.clamp_min(1e-10))


def to_8_bits(video: Tensor) -> Tensor:
    """Round [-1, 1] to 0 … 1 in steps of 1/255."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round() / 255
