"""The step ``latent: {use: diffusers_vae}``: read the folder, find the geometry, try it, give the codec."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.errors import UserError
from dit_compress.files import read_json
from dit_compress.spec import ComponentSpec
from dit_compress_plugins.latent_diffusers_vae import facts
from dit_compress_plugins.latent_diffusers_vae.codec import DiffusersCodec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dit_compress.context import Context, Result
    from dit_compress.spec import Spec
    from dit_compress_plugins.latent_diffusers_vae import DiffusersVAEOptions

PLUGIN = "diffusers_vae"


class DiffusersVAEStep:
    """Wraps the VAE of ``options.path``; its weights become those of the bundle."""

    def __init__(self, options: DiffusersVAEOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """The bundle gets a codec; the video must fit. Reads config.json alone."""
        after = replace(spec, latent=ComponentSpec("latent", PLUGIN, self.describe(self.empty())))
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
        """The codec of a saved config without weights; works on the meta device."""
        return DiffusersCodec.from_config(config)

    def empty(self) -> Any:
        """The folder's VAE on the meta device."""
        from accelerate import init_empty_weights

        config = read_json(facts.folder_of(Path(self.options.path)) / "config.json")
        with init_empty_weights(include_buffers=False):
            return facts.empty(config["_class_name"], config)

    def describe(self, vae: Any) -> dict[str, Any]:
        """The codec's config, geometry and statistics included. ``vae`` may be without weights."""
        options = self.options
        config = {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}
        about = {"class_name": type(vae).__name__, "vae": config, "tile": options.tile}
        about["decode_timestep"] = options.decode_timestep
        unknown = {"ratio": (1, 1, 1), "channels": 1, "frames": (1, 1), "latent_mean": [0.0], "latent_std": [1.0]}
        probe = DiffusersCodec(self.empty().to("meta"), about | unknown)
        found = facts.observe(probe.vae, probe.decode_raw)
        mean, std = facts.statistics(vae, found.channels, options.scaling_factor)
        geometry = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(found).items()}
        return {**about, **geometry, "latent_mean": mean, "latent_std": std}

    def load(self) -> DiffusersCodec:
        """The VAE with its weights in float32, frozen."""
        folder = facts.folder_of(Path(self.options.path))
        kind = facts.class_named(read_json(folder / "config.json")["_class_name"])
        try:
            vae = kind.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the VAE's weights can't be read: {str(error).splitlines()[0]}",
                where=str(folder),
                mend="Save it with save_pretrained, as safetensors",
            ) from error
        vae = facts.quiet(vae.eval().requires_grad_(requires_grad=False))
        return DiffusersCodec(vae, self.describe(vae))


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
