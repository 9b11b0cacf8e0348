"""The codec of two halves: the encoder of a VAE, as it was, and a small decoder onto its latents.

Shapes: video ``[B,3,F,Y,X]`` in [-1, 1], latent ``[B,C,T,H,W]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.model.halves import frame_rule, halves, leave_out, unread
from dit_compress.model.protocols import Codec
from dit_compress.model.spec import ComponentSpec
from dit_compress_plugins.latent_decoder.network import FRAME_CELL, SmallDecoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dit_compress_plugins.latent_decoder import DecoderOptions

STATISTICS = ("latent_mean", "latent_std")


class DecoderCodec(nn.Module, Codec):
    """Encodes by another codec, decodes by a :class:`SmallDecoder`.

    Args:
        encoder: the other codec, without what only its decoder needs.
        config: see :func:`describe`.
    """

    frame_rule: tuple[int, int]

    def __init__(self, encoder: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder, self.config = encoder, dict(config)
        time, height, width = config["ratio"]
        self.ratio = (int(time), int(height), int(width))
        self.channels = int(config["channels"])
        lead, step = config["frames"]
        self.frame_rule = (int(lead), int(step))
        self.chunk = int(config["chunk"])
        self.decoder = SmallDecoder(
            self.channels, self.ratio, self.frame_rule[0], config["widths"], config["blocks"], config["frame_width"]
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DecoderCodec:
        """Make the codec without weights; works on the meta device."""
        return cls(encoder_of(config), config)

    def encode(self, video_BCFYX: Tensor) -> Tensor:
        """Encode as the other codec does."""
        return cast("Codec", self.encoder).encode(video_BCFYX)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode to video, unclipped; a long latent in chunks, which join exactly."""
        if latent_BCTHW.shape[2] <= self.chunk:
            return self.forward(latent_BCTHW)
        return torch.cat(list(self.decode_chunks(latent_BCTHW)), 2)

    def decode_chunks(self, latent_BCTHW: Tensor, chunk: int | None = None) -> Iterator[Tensor]:
        """Yield the video of :meth:`decode` piece by piece, each decoded with the latent frames it looks back at."""
        size, (lead, _) = chunk or self.chunk, self.frame_rule
        for first in range(0, latent_BCTHW.shape[2], size):
            begin = max(0, first - self.decoder.reach)
            video = self.forward(latent_BCTHW[:, :, begin : first + size])
            yield video[:, :, lead + self.ratio[0] * (first - begin - 1) :] if first else video

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode in one piece: what exporters trace."""
        return self.decoder(latent_BCTHW)


def describe(of: ComponentSpec, options: DecoderOptions) -> dict[str, Any]:
    """Describe the codec that a small decoder makes of another's component; reads no weights.

    What has such a codec already keeps its encoder, and gets another decoder.
    """
    codec: Any = of.outline
    _check(codec, options)
    about = {
        "ratio": list(codec.ratio),
        "channels": codec.channels,
        "frames": list(frame_rule(codec)),
        "widths": list(options.widths),
        "blocks": options.blocks,
        "frame_width": options.frame_width,
        "chunk": options.chunk,
    }
    if isinstance(codec, DecoderCodec):
        return {**codec.config, **about}
    whole = {"plugin": of.plugin, "config": of.config, "log": list(of.log)}
    statistics = {name: of.config[name] for name in STATISTICS if of.config.get(name) is not None}
    return {**about, **statistics, "encoder": {**whole, "left_out": unread(codec, halves(codec).encoding)}}


def encoder_of(config: Mapping[str, Any]) -> nn.Module:
    """Make the encoder's codec of a config without weights, and without what only its decoder needs."""
    whole = config["encoder"]
    module = ComponentSpec("latent", whole["plugin"], whole["config"], tuple(whole["log"])).build()
    leave_out(module, whole["left_out"])
    return module


def _check(codec: Codec, options: DecoderOptions) -> None:
    """Raise a UserError where no small decoder fits the ratio."""
    time, height, width = codec.ratio
    finest = 2 ** (len(options.widths) - 1)
    said = f"the VAE has latent cells of {time}x{height}x{width} pixels"
    if height != width:
        raise UserError(f"{said}; the small decoder's are squares", mend="Take a VAE whose cells are")
    if height % finest:
        most = (height & -height).bit_length()
        raise UserError(
            f"{said}, which can't be halved {len(options.widths) - 1} times", mend=f"Give at most {most} 'widths'"
        )
    if options.frame_width and height % FRAME_CELL:
        raise UserError(f"{said}, which cells of {FRAME_CELL} do not divide", mend="Set 'frame_width: 0'")
