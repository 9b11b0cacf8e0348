"""The step ``latent: {use: diffusers_vae}``: read the folder, find the geometry, try it, give the codec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.model.spec import ComponentSpec
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files.whole import load_whole
from dit_compress_plugins.latent_diffusers_vae.codec import SETTINGS, DiffusersCodec, describe
from dit_compress_plugins.latent_diffusers_vae.facts import class_named, folder_of, quiet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress_plugins.latent_diffusers_vae import DiffusersVAEOptions

PLUGIN = "diffusers_vae"


class DiffusersVAEStep:
    """Wraps the VAE of ``options.path``; its weights become those of the bundle."""

    def __init__(self, options: DiffusersVAEOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Give the bundle a codec; the video must fit. Reads config.json alone."""
        with empty_weights():
            vae = quiet(load_whole(folder_of(Path(self.options.path)), named=class_named))
        after = replace(spec, latent=ComponentSpec("latent", PLUGIN, describe(vae, **self.settings())))
        if spec.video is not None:
            after.latent_size()
        return after

    def run(self, context: Context) -> Result:
        """Load, try on a tiny clip, give the bundle."""
        codec = self.load()
        try_out(codec)
        spec = replace(context.spec(), latent=ComponentSpec("latent", PLUGIN, codec.config))
        return context.give({"latent": codec}, spec=spec)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make the codec of a saved config without weights; works on the meta device."""
        return DiffusersCodec.from_config(config)

    def load(self) -> DiffusersCodec:
        """Load the codec with the folder's weights."""
        return DiffusersCodec.from_pretrained(self.options.path, **self.settings())

    def settings(self) -> dict[str, Any]:
        """Return the options besides the path."""
        return {name: getattr(self.options, name) for name in SETTINGS}


@torch.no_grad()
def try_out(codec: DiffusersCodec) -> None:
    """Encode and decode a tiny clip; UserError unless the shapes are those observed and every value is finite."""
    (lead, step), (time, height, width) = codec.frame_rule, codec.ratio
    frames = lead + step
    video = torch.linspace(-1, 1, 3 * frames * 4 * height * width).reshape(1, 3, frames, 2 * height, 2 * width)
    latent = codec.encode(video)
    decoded = codec.decode(latent)
    name = codec.config["class_name"]
    if latent.shape != (1, codec.channels, 1 + step // time, 2, 2) or decoded.shape != video.shape:
        raise UserError(f"{name} gives {list(latent.shape)} and {list(decoded.shape)} for {list(video.shape)}")
    if not (torch.isfinite(latent).all() and torch.isfinite(decoded).all()):
        raise UserError(
            f"{name} gives values that are not finite for a plain clip", mend="Its weights are damaged: fetch them anew"
        )
