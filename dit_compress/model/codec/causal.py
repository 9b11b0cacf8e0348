"""A causal codec: two coders, latent statistics in its config, chunks of long videos and tiles of large frames.

Shapes: B batch, C channels, T H W latent frames, height, width; video ``[B,3,F,Y,X]`` in [-1, 1] with
F = 1 + ratio[0]·(T-1), Y = ratio[1]·H, X = ratio[2]·W.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from einops import rearrange

from dit_compress.core.errors import UserError
from dit_compress.model.codec.carried import Carried
from dit_compress.model.codec.tiles import Place, Tiling, in_tiles
from dit_compress.model.protocols import Codec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


class CausalCodec(ModelMixin, ConfigMixin, Codec):
    """A codec ``[B,3,F,Y,X] ↔ [B,C,T,H,W]``; latent frame t depends on frames ≤ ratio[0]·t only.

    A subclass makes ``encoder`` and ``decoder`` in a constructor under ``register_to_config`` and calls
    :meth:`settle`. Both map ``(tensor, carried)``, the decoder also ``features`` (a list to add to), and state the
    pixels that they see to each side as ``reach``.
    """

    encoder: Any
    decoder: Any

    def settle(
        self,
        ratio: Sequence[int],
        channels: int,
        statistics: tuple[Sequence[float] | None, Sequence[float] | None],
        tiles: tuple[int, int | None],
        chunk: int,
    ) -> None:
        """Take over what the config says of the geometry.

        Args:
            ratio: pixels per latent cell along time, height, width.
            channels: C.
            statistics: mean and std of the raw latent per channel; None before they are measured.
            tiles: cells of a tile's side, and cells that neighbours share; None for so many that tiles join exactly, up
                to half of one.
            chunk: latent frames at a time.
        """
        self.ratio = (ratio[0], ratio[1], ratio[2])
        self.channels = channels
        self.chunk = chunk
        self.encode_tiling = tiling(*tiles, -(-self.encoder.reach // ratio[1]))
        self.decode_tiling = tiling(*tiles, -(-self.decoder.reach // ratio[1]))
        mean, std = statistics
        self._set_statistics(mean or [0.0] * channels, std or [1.0] * channels)

    def encode(self, video_BCFYX: Tensor) -> Tensor:
        """Encode video in [-1, 1] to a normalised latent ``[B,C,T,H,W]`` (the posterior mean), in chunks and tiles."""
        self.check_video(video_BCFYX.shape)
        frames, height, width = video_BCFYX.shape[-3:]
        cells = height // self.ratio[1], width // self.ratio[2]
        if frames <= self._frames(self.chunk) and self.encode_tiling.fits(*cells):
            raw_BCTHW = self.encode_raw(video_BCFYX)
        else:
            raw_BCTHW = torch.cat(list(self._encode_chunks(video_BCFYX)), 2)
        mean, std = self._statistics(raw_BCTHW)
        return (raw_BCTHW - mean) / std

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode a normalised latent to video, unclipped; in chunks where it is long, in tiles where it is large."""
        if latent_BCTHW.shape[2] <= self.chunk and self.decode_tiling.fits(*latent_BCTHW.shape[-2:]):
            return self.forward(latent_BCTHW)
        return torch.cat(list(self.decode_chunks(latent_BCTHW)), 2)

    def decode_chunks(
        self, latent_BCTHW: Tensor, chunk: int | None = None, first_BCYX: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield the video of :meth:`decode` piece by piece, so that a long one need not be held at once.

        Every layer goes on from the frames that the chunk before has left: the pieces are those of the whole video to
        float round-off, whatever the length of a chunk.

        Args:
            latent_BCTHW: normalised.
            chunk: latent frames at a time; None for the codec's own.
            first_BCYX: the first frame, for decoders that take one.

        Yields:
            ``[B,3,F,Y,X]``: 1 + ratio[0]·(chunk-1) frames first, then ratio[0]·chunk at a time.
        """
        carried: defaultdict[Place, Carried] = defaultdict(Carried)
        mean, std = self._statistics(latent_BCTHW)

        def decoded(tile: Tensor, place: Place) -> Tensor:
            if first_BCYX is None:
                return self.decoder(tile, carried[place])
            top, left, height, width = (cells * self.ratio[1] for cells in (*place, *tile.shape[-2:]))
            return self.decoder(tile, carried[place], first=first_BCYX[..., top : top + height, left : left + width])

        for part in (latent_BCTHW * std + mean).split(chunk or self.chunk, 2):
            yield in_tiles(decoded, part, self.decode_tiling, 1, self.ratio[1])

    def features(self, latent_BCTHW: Tensor) -> list[Tensor]:
        """Return the decoder's stream on the way to the video, coarse to fine: ``[B,D,T,H,W]`` each."""
        features: list[Tensor] = []
        mean, std = self._statistics(latent_BCTHW)
        self.decode_raw(latent_BCTHW * std + mean, features=features)
        return features

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode in one piece: what exporters trace."""
        mean, std = self._statistics(latent_BCTHW)
        return self.decode_raw(latent_BCTHW * std + mean)

    def encode_raw(self, video_BCFYX: Tensor) -> Tensor:
        """Encode in one piece to the raw latent: what training does."""
        return self.encoder(video_BCFYX)

    def decode_raw(self, raw_BCTHW: Tensor, **given: Any) -> Tensor:
        """Decode a raw latent in one piece; ``given`` as the decoder takes it."""
        return self.decoder(raw_BCTHW, **given)

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Write the raw latent's mean and std per channel into the config."""
        self._set_statistics(mean, std)
        # diffusers' from_config drops what it believes to be a default of the constructor.
        defaults = set(self.config.get("_use_default_values", ())) - {"latent_mean", "latent_std"}
        self.register_to_config(
            latent_mean=list(self._mean), latent_std=list(self._std), _use_default_values=sorted(defaults)
        )

    def check_video(self, shape: Sequence[int]) -> None:
        """Raise unless the video's frames and size fit the ratio."""
        frames, height, width = shape[-3:]
        time, size, _ = self.ratio
        if (frames - 1) % time or height % size or width % size:
            what = f"a video of {frames} frames of {height}x{width} pixels does not fit a VAE of {time}x{size}x{size}"
            raise UserError(what, mend=f"Give 1 + {time}·k frames, and a height and width divisible by {size}.")

    def _encode_chunks(self, video_BCFYX: Tensor) -> Iterator[Tensor]:
        """Yield raw latents ``[B,C,chunk,H,W]`` of successive chunks."""
        carried: defaultdict[Place, Carried] = defaultdict(Carried)
        first, rest = video_BCFYX.tensor_split([self._frames(self.chunk)], 2)
        for part in (first, *(rest.split(self.ratio[0] * self.chunk, 2) if rest.shape[2] else ())):
            yield in_tiles(
                lambda tile, place: self.encoder(tile, carried[place]), part, self.encode_tiling, self.ratio[1], 1
            )

    def _frames(self, num_latent: int) -> int:
        """Count the frames of so many latent frames."""
        return 1 + self.ratio[0] * (num_latent - 1)

    def _set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = tuple(map(float, mean)), tuple(map(float, std))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, self.channels, 1, 1, 1)
        return like.new_tensor(self._mean).reshape(shape), like.new_tensor(self._std).reshape(shape)


def config_of(codec: CausalCodec) -> dict[str, Any]:
    """Return the JSON config of a codec, statistics included."""
    return {name: value for name, value in dict(codec.config).items() if not name.startswith("_")}


def tiling(tile: int, overlap: int | None, reach: int) -> Tiling:
    """Return tiles for a network that sees ``reach`` cells to each side."""
    return Tiling(tile, min(2 * reach, tile // 2) if overlap is None else overlap, reach)


def check_ratio(ratio: Sequence[int], plugin: str) -> None:
    """Raise unless the ratio is one that a codec of patches can be built for."""
    time, height, width = ratio
    if time < 1 or height != width or height < 8 or height & (height - 1):
        what = f"a {plugin} can't be built with ratio {time}x{height}x{width}"
        raise UserError(what, mend="Give an equal height and width, a power of two from 8 on, such as 8x32x32.")


def channel_statistics(raw_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and std per channel ``[C]``; std at least a hundredth of the largest."""
    values_CN = rearrange(raw_BCTHW.float(), "B C T H W -> C (B T H W)")
    std_C = values_CN.std(1)
    return values_CN.mean(1), torch.maximum(std_C, std_C.max() * 0.01)
