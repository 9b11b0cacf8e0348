"""The step ``latent: {use: diffusers_vae}``: read the folder, find the geometry, try it, train it, give the codec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import component_digest
from dit_compress.model.halves import halves
from dit_compress.model.spec import ComponentSpec
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files.whole import load_whole
from dit_compress.train.codec.objective import CodecObjective
from dit_compress.train.codec.step import check_scales, round_trip_db
from dit_compress.train.loop import fit
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
        self.check_moved(spec)
        if spec.video is not None:
            losses = self.options.finetune.losses if self.options.finetune else None
            check_scales(after.latent_size(), losses.scales if losses and losses.scale else ())
        return after

    def run(self, context: Context) -> Result:
        """Load, try on a tiny clip, train where the options ask for it, give the bundle."""
        codec = self.load()
        try_out(codec)
        tuned = self.options.finetune
        kept = tuned is not None and tuned.train == "decoder" and not context.world.rank
        latents = component_digest(codec, codec.config, context.folder) if kept else None
        metrics = self.finetune(codec, context) if tuned else {}
        spec = replace(context.spec(), latent=ComponentSpec("latent", PLUGIN, codec.config, latents=latents))
        return context.give({"latent": codec}, spec=spec, metrics=metrics)

    def finetune(self, codec: DiffusersCodec, context: Context) -> dict[str, float]:
        """Train the VAE further, in place; return the PSNR of held-out clips before and after.

        The statistics stay those of its config: pipelines read them there.
        """
        options = self.options.finetune
        assert options is not None
        held_out, before, device = context.pixels("test"), 0.0, context.world.device
        if not context.world.rank:
            before = round_trip_db(codec.to(device), held_out)
        codec.requires_grad_(requires_grad=options.train == "all")
        only = () if options.train == "all" else decoding(codec)
        objective = CodecObjective(codec, options, only=only, seed=context.seed)
        fit(objective, context.pixels("train"), options, context)
        codec.eval().requires_grad_(requires_grad=False)
        after = round_trip_db(codec.to(device), held_out)
        codec.to("cpu")
        return {"psnr_db": after, "psnr_before_db": before, "gained_db": after - before}

    def check_moved(self, spec: Spec) -> None:
        """Raise a UserError where training would move the latents of a denoiser, and the options do not say so."""
        options = self.options.finetune
        if options is None or spec.denoiser is None or options.train == "decoder" or options.latents == "changed":
            return
        raise UserError(
            "'finetune' would move the latents, and the bundle has a denoiser that may have been trained on them",
            mend="Train the decoder alone ('train: decoder'), or say 'latents: changed' and train the denoiser anew",
        )

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


def decoding(codec: DiffusersCodec) -> tuple[str, ...]:
    """Return the names of the parameters that decode alone; a UserError where there are none."""
    names = {name for name, _ in codec.named_parameters()}
    found = tuple(sorted(halves(codec).decoder & names))
    if not found:
        raise UserError(
            f"{codec.config['class_name']} has no weights that decode alone, which 'train: decoder' could train",
            mend="Train all of it: 'train: all'",
        )
    return found
