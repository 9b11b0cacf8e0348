"""A VAE of diffusers behind ``Codec``: normalised latents, one decode in one piece for exporters.

Shapes: video ``[B,3,F,Y,X]`` in [-1, 1], latent ``[B,C,T,H,W]``.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.model.protocols import Codec
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files.whole import load_whole
from dit_compress_plugins.latent_diffusers_vae.facts import (
    FLAGS,
    STATISTICS,
    class_named,
    empty,
    folder_of,
    mode,
    observe,
    quiet,
    statistics,
    takes_images,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dit_compress_plugins.latent_diffusers_vae.facts import Geometry

SETTINGS = ("scaling_factor", "tile", "decode_timestep")
ONE_BY_ONE = ("AutoencoderKLHunyuanVideo15",)
"""Classes that take one clip at a time: the mask ``[B,S,S]`` of its attention fits no other batch (diffusers 0.42)."""


class DiffusersCodec(nn.Module, Codec):
    """Normalises with the VAE's own statistics, and calls it.

    Args:
        vae: as ``facts.empty`` or ``from_pretrained`` made it.
        config: JSON: class_name, vae, ratio, channels, frames, latent_mean, latent_std, tile, decode_timestep.
    """

    frame_rule: tuple[int, int]

    def __init__(self, vae: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.vae: Any = vae
        self.config = dict(config)
        time, height, width = config["ratio"]
        self.ratio = (int(time), int(height), int(width))
        self.channels = int(config["channels"])
        lead, step = config["frames"]
        self.frame_rule = (int(lead), int(step))
        self._images = takes_images(vae)
        self._one_by_one = type(vae).__name__ in ONE_BY_ONE
        self._temb = config["decode_timestep"] if config["vae"].get("timestep_conditioning") else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DiffusersCodec:
        """Make the codec without weights; works on the meta device."""
        return cls(empty(config["class_name"], config["vae"]), config)

    @classmethod
    def from_pretrained(cls, folder: Path | str, **settings: Any) -> DiffusersCodec:
        """Load the codec of a folder of diffusers, weights in float32, frozen.

        Args:
            folder: of the VAE, or of a pipeline with ``vae/``.
            settings: see :func:`describe`; what diffusers' own ``from_pretrained`` takes besides is passed over.

        Raises UserError where config or weights are broken, or not those of each other.
        """
        place = folder_of(Path(folder))
        vae = quiet(load_whole(place, torch.float32, class_named).requires_grad_(requires_grad=False))
        return cls(vae, describe(vae, **{name: settings[name] for name in SETTINGS if name in settings}))

    def encode(self, video_BCFYX: Tensor) -> Tensor:
        """Encode video to a normalised latent (the posterior's mode)."""
        self.check_video(video_BCFYX.shape)
        with self._divided():
            raw_BCTHW = self.encode_raw(video_BCFYX)
        mean, std = self._statistics(raw_BCTHW)
        return (raw_BCTHW - mean) / std

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode a normalised latent to video, unclipped; in the VAE's own tiles where the options ask for them."""
        with self._divided():
            return self.forward(latent_BCTHW)

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode in one piece: what exporters trace."""
        mean, std = self._statistics(latent_BCTHW)
        return self.decode_raw(latent_BCTHW * std + mean)

    def encode_raw(self, video_BCFYX: Tensor) -> Tensor:
        """Encode with the VAE itself, in one piece: the posterior's mode. A VAE of images sees each frame alone."""
        if self._one_by_one and len(video_BCFYX) > 1:
            return torch.cat([self.encode_raw(each) for each in video_BCFYX.split(1)])
        if not self._images:
            return mode(self.vae.encode(video_BCFYX))
        return _unfolded(mode(self.vae.encode(_folded(video_BCFYX))), video_BCFYX.shape[0])

    def decode_raw(self, raw_BCTHW: Tensor) -> Tensor:
        """Decode with the VAE itself."""
        if self._one_by_one and len(raw_BCTHW) > 1:
            return torch.cat([self.decode_raw(each) for each in raw_BCTHW.split(1)])
        if self._images:
            return _unfolded(self.vae.decode(_folded(raw_BCTHW)).sample, raw_BCTHW.shape[0])
        if self._temb is None:
            return self.vae.decode(raw_BCTHW).sample
        temb_B = raw_BCTHW.new_full((raw_BCTHW.shape[0],), self._temb)
        return self.vae.decode(raw_BCTHW, temb_B).sample

    def features(self, latent_BCTHW: Tensor) -> list[Tensor]:
        """Return the decoder's stream after each of its ``up_blocks``: ``[B,D,T,H,W]`` each.

        A decoder that goes through time in steps calls a block several times; the pieces are joined along T.
        """
        if not hasattr(self.vae.decoder, "up_blocks"):
            raise UserError(
                f"the decoder of {self.config['class_name']} has no 'up_blocks' whose features could be taken",
                mend="Take another VAE as teacher",
            )
        noted: list[list[Tensor]] = [[] for _ in self.vae.decoder.up_blocks]

        def noting(place: list[Tensor]) -> Any:
            return lambda _module, _given, out: place.append(out[0] if isinstance(out, tuple) else out)

        hooks = [
            block.register_forward_hook(noting(place))
            for block, place in zip(self.vae.decoder.up_blocks, noted, strict=True)
        ]
        try:
            self.forward(latent_BCTHW)
        finally:
            for hook in hooks:
                hook.remove()
        return [torch.cat(pieces, 2) for pieces in noted]

    def check_video(self, shape: torch.Size) -> None:
        """Raise unless the video's frames and size fit."""
        frames, height, width = shape[-3:]
        (lead, step), (_, y, x) = self.frame_rule, self.ratio
        if frames < lead or (frames - lead) % step or height % y or width % x:
            raise UserError(
                f"a video of {frames} frames of {height}x{width} pixels does not fit {self.config['class_name']}",
                mend=f"Give {lead} + {step}·k frames, a height divisible by {y} and a width by {x}",
            )

    def save_pretrained(self, folder: Path | str) -> None:
        """Save the VAE alone, as an ordinary folder of diffusers."""
        self.vae.save_pretrained(folder)

    @contextmanager
    def _divided(self) -> Iterator[None]:
        """Let the VAE divide large videos, where the options ask for it."""
        before = {name: getattr(self.vae, name) for name in FLAGS if hasattr(self.vae, name)}
        try:
            if self.config["tile"]:
                self.vae.enable_tiling()
            yield
        finally:
            for name, value in before.items():
                setattr(self.vae, name, value)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, self.channels, 1, 1, 1)
        mean, std = self.config["latent_mean"], self.config["latent_std"]
        return like.new_tensor(mean).reshape(shape), like.new_tensor(std).reshape(shape)


def _folded(x_BCTHW: Tensor) -> Tensor:
    """Put the frames into the batch."""
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def _unfolded(x_NCHW: Tensor, batch: int) -> Tensor:
    return x_NCHW.unflatten(0, (batch, -1)).transpose(1, 2)


def describe(
    vae: Any, *, scaling_factor: float | None = None, tile: bool = False, decode_timestep: float = 0.0
) -> dict[str, Any]:
    """Describe a codec around a VAE, which may be without weights: geometry as observed, statistics as stated."""
    config = {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}
    about = {"class_name": type(vae).__name__, "vae": config, "tile": tile, "decode_timestep": decode_timestep}
    shapes = {name: value for name, value in config.items() if name not in STATISTICS}
    found = _observed(json.dumps({**about, "vae": shapes}))
    mean, std = statistics(vae, found.channels, scaling_factor)
    geometry = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(found).items()}
    return {**about, **geometry, "latent_mean": mean, "latent_std": std}


@cache
def _observed(about: str) -> Geometry:
    """Observe a class under a config; once in a process, as plan, try and load ask for the same."""
    unknown = {"ratio": (1, 1, 1), "channels": 1, "frames": (1, 1), "latent_mean": [0.0], "latent_std": [1.0]}
    with empty_weights():
        probe = DiffusersCodec.from_config(json.loads(about) | unknown).to("meta")  # buffers may be copies of constants
    return observe(type(probe.vae).__name__, probe.encode_raw, probe.decode_raw)
