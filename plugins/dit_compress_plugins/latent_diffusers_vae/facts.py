"""Facts about a VAE of diffusers: its class, its latent statistics, its ratio and its frame rule.

Statistics stand in config or buffers, under one of three names. Ratio and frame rule are stated differently by every
class, and now and then wrongly, so they are observed: encoder and decoder are run on the meta device, where shapes
come out and nothing is computed.

Shapes: video ``[B,3,F,Y,X]``, latent ``[B,C,T,H,W]``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import nn

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

PROBE_SIZE = 128
"""Pixels a side of the probing videos: a multiple of every ratio there is."""
GROUP = 24
"""Frames by which two probing videos differ: a multiple of every group of frames there is."""


@dataclass(frozen=True)
class Geometry:
    """ratio: pixels per latent cell along time, height, width. channels: of the latent.

    frames: (lead, step): a video has ``lead + step·k`` frames; the first latent frame stands for ``lead`` of them.
    """

    ratio: tuple[int, int, int]
    channels: int
    frames: tuple[int, int]


def folder_of(path: Path) -> Path:
    """Return the VAE's folder in a pipeline, or the folder itself."""
    for found in (path / "vae", path):
        if (found / "config.json").is_file():
            return found
    raise UserError(
        "no VAE of diffusers here (config.json is missing)",
        where=str(path),
        mend="Give the folder of a VAE that save_pretrained wrote, or a pipeline with vae/",
    )


def class_named(name: str) -> Any:
    """Return a VAE class of diffusers."""
    places = (diffusers, importlib.import_module("diffusers.models.autoencoders"))
    found = next((getattr(place, name) for place in places if hasattr(place, name)), None)
    if found is None or not all(hasattr(found, each) for each in ("encode", "decode", "from_pretrained")):
        raise UserError(
            f"diffusers {diffusers.__version__} has no VAE {name!r}",
            mend="Check the folder; a newer diffusers may have the class",
        )
    return found


def empty(name: str, config: Mapping[str, Any]) -> Any:
    """Make the VAE without weights; parameters where the caller's context puts them, buffers as they are made."""
    # Keys that begin with an underscore are diffusers' own notes; from_config misreads _use_default_values.
    vae = class_named(name).from_config({key: value for key, value in config.items() if not key.startswith("_")})
    return quiet(vae.eval().requires_grad_(requires_grad=False))


def quiet(vae: Any) -> Any:
    """Set the decoder to no noise, and undivided: the same latent gives the same video, in one piece."""
    for module in vae.modules():
        for name in ("per_channel_scale1", "per_channel_scale2"):
            if isinstance(getattr(module, name, None), torch.Tensor):
                setattr(module, name, None)
    for name in FLAGS:
        if hasattr(vae, name):
            setattr(vae, name, False)
    return vae


FLAGS = ("use_tiling", "use_slicing", "use_framewise_encoding", "use_framewise_decoding")
"""Switches by which the classes of diffusers divide a video."""


STATISTICS = ("latents_mean", "latents_std", "scaling_factor", "shift_factor")
"""What a config states of the latent's values; no shape depends on it."""


def mode(encoded: Any) -> Tensor:
    """Return the output of ``encode`` as one latent: the posterior's mode, or the latent of a deterministic encoder."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latent if hasattr(encoded, "latent") else encoded.latents


# ------------------------------------------------------------------ statistics


def statistics(vae: Any, channels: int, scaling_factor: float | None = None) -> tuple[list[float], list[float]]:
    """Return mean and std per channel of the raw latent, so that ``(raw - mean) / std`` is what pipelines diffuse.

    The pipelines of diffusers compute ``(raw - mean) · scaling_factor / std``; each of the three may be missing.
    """
    factor = scaling_factor if scaling_factor is not None else vae.config.get("scaling_factor")
    factor = 1.0 if factor is None else float(factor)
    mean = _per_channel(vae, "latents_mean", channels, vae.config.get("shift_factor") or 0.0)
    std = _per_channel(vae, "latents_std", channels, 1.0)
    effective = [value / factor for value in std]
    if not all(torch.isfinite(torch.tensor([*mean, *effective]))) or min(effective) <= 0:
        raise UserError(
            "the VAE's latent statistics are not finite, or a std is not positive",
            mend="Correct latents_mean, latents_std and scaling_factor in its config.json",
        )
    return mean, effective


def _per_channel(vae: Any, name: str, channels: int, otherwise: float) -> list[float]:
    """Read a statistic from a buffer or the config, one value a channel."""
    given = dict(vae.named_buffers(recurse=False)).get(name)
    values = vae.config.get(name) if given is None else given.tolist()
    if values is None:
        return [otherwise] * channels
    if len(values) != channels:
        raise UserError(f"{name} has {len(values)} values, the latent {channels} channels", mend="Correct config.json")
    return [float(value) for value in values]


# ------------------------------------------------------------------ geometry


def takes_images(vae: nn.Module) -> bool:
    """Tell whether a VAE is one of images: nothing in it convolves over time."""
    return not any(isinstance(module, nn.Conv3d) for module in vae.modules())


def observe(name: str, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> Geometry:
    """Observe ratio, channels and frame rule of a VAE on the meta device.

    Args:
        name: its class.
        encode, decode: from video to raw latent and back, of a VAE without weights.

    Raises:
        UserError: it takes no video, or no rule ``lead + step·k`` brings back as many frames as were given.
    """

    def encoded(frames: int) -> torch.Size:
        return encode(torch.empty(1, 3, frames, PROBE_SIZE, PROBE_SIZE, device="meta")).shape

    try:
        short, long = encoded(1 + GROUP), encoded(1 + 2 * GROUP)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"{name} encodes no video of {1 + GROUP}x{PROBE_SIZE}x{PROBE_SIZE}: {str(error).splitlines()[0]}",
            mend="Give a VAE for video",
        ) from error
    _, channels, _, height, width = short
    time = GROUP // max(1, long[2] - short[2])
    ratio = (time, PROBE_SIZE // height, PROBE_SIZE // width)
    for lead, step in dict.fromkeys([(1, time), (1, 2 * time), (time, time)]):
        if all(_holds(encode, decode, lead + step * k, lead, time) for k in (1, 2, 3)):
            return Geometry(ratio, channels, (lead, step))
    raise UserError(
        f"{name} follows none of the frame rules 1 + {time}·k, 1 + {2 * time}·k and {time}·k",
        mend="Wrap it in a latent plugin of your own: see docs/plugins/latent.md",
    )


def _holds(
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], frames: int, lead: int, time: int
) -> bool:
    """Tell whether so many frames are encoded to as many latent frames as the rule has it, and come back."""
    try:
        raw = encode(torch.empty(1, 3, frames, PROBE_SIZE, PROBE_SIZE, device="meta"))
        video = decode(raw)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return raw.shape[2] == 1 + (frames - lead) // time and video.shape[2:] == (frames, PROBE_SIZE, PROBE_SIZE)
