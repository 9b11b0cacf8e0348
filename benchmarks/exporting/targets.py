"""Common parts of the export benchmarks: exporters by name, components by name, peak memory."""

from __future__ import annotations

import copy
import resource
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.export import Component, dit_step, vae_decoder
from dit_compress.model.codec.causal import config_of
from dit_compress.model.cut import compact
from dit_compress.model.spec import ComponentSpec
from dit_compress.plugin.options import load_object
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.importance import magnitude, top
from dit_compress.structure.apply import apply_edits
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import drawn, tiny_context
from dit_compress_plugins.latent_decoder import DecoderOptions
from dit_compress_plugins.latent_decoder.codec import describe
from dit_compress_plugins.latent_decoder.step import small_codec
from dit_compress_plugins.prune_channels import ChannelsOptions
from dit_compress_plugins.prune_channels.step import ChannelPruning

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser

TARGETS = dict.fromkeys(("coreml", "coreai", "onnx", "executorch"), ("float32", "float16"))
"""Target → precisions it is exported in."""
RATIOS = {"4x16x16": (4, 16, 16), "4x32x32": (4, 32, 32), "8x32x32": (8, 32, 32), "8x64x64": (8, 64, 64)}
CODECS = {"vae": "video_vae", "h3ae": "h3ae"}
FOREIGN = "ltx"
"""The VAE of diffusers, in decoders' names: fine-tuned here before anything is made of it."""
DECODERS = (
    *(f"{made}-{codec} 8x32x32" for made in ("phone", "cut") for codec in (*CODECS, FOREIGN)),
    f"tuned-{FOREIGN} 8x32x32",
)
"""Decoders that are made of a codec."""
LTX = {"latent_channels": 8, "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
LTX |= {"block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
"""Its class is diffusers' ``AutoencoderKLLTXVideo``."""
DITS = ("video_dit", "pruned video_dit", "ltx", "wan")
REMOVED = {"block": 1 / 3, "head": 1 / 2, "ffn": 1 / 4}
SIZE = (3, 4, 4)


def exporter(target: str, **options: Any) -> Any:
    """Return the exporter of a target, with options."""
    plugin = installed().get("export", target)
    installed().require(plugin)
    if "precision" in options and "precision" not in plugin.options.model_fields:
        del options["precision"]
    return load_object(plugin.load)(plugin.options(**options))


def settle(module: torch.nn.Module) -> torch.nn.Module:
    """Move biases and tables away from zero, as training does."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return module.eval()


def dit_component(name: str) -> Component:
    """Return a small DiT step: random weights, a typical latent, a caption of which half is padding."""
    denoiser = tiny_denoiser(name.removeprefix("pruned "))
    settle(denoiser.module)
    if name.startswith("pruned"):
        denoiser = pruned(denoiser)
    return step_of(denoiser, SIZE)


def step_of(denoiser: Denoiser, size: tuple[int, int, int]) -> Component:
    """Wrap a denoiser as a component, on its own example inputs."""
    torch.manual_seed(1)
    latent, _, cond = denoiser.example(1, size)
    return dit_step(denoiser.eval(), latent, dict(cond))


def pruned(whole: Denoiser) -> Denoiser:
    """Return a compacted copy: a third of the blocks, half the heads, a quarter of the FFN removed by magnitude."""
    small = copy.deepcopy(whole)
    structure = small.structure()
    axes = [axis for level in REMOVED for axis in make_part("granularity", level, installed()).build().axes(structure)]
    counts = {axis.name: axis.units - round(REMOVED[axis.level] * axis.units) for axis in axes}
    compact(small, axes, {axis.name: top(magnitude(small.module, axis), counts[axis.name]) for axis in axes})
    return small


def codec_of(name: str, ratio: str) -> Any:
    """Return a small codec at a ratio."""
    maker = load_object(installed().get("latent", CODECS[name]).load)
    torch.manual_seed(0)
    config = {"ratio": list(RATIOS[ratio]), "channels": 32, "widths": [8, 16, 16, 32], "num_blocks": 1}
    codec = maker.from_config(config)
    for module in codec.modules():  # the linear code is PCA in a trained one: any matrix of its size will do
        if type(module).__name__ == "FixedLinear":
            module.weight.normal_(std=module.weight.shape[1] ** -0.5)
    return settle(codec)


@cache
def tuned() -> Any:
    """Return the bundle's codec of a VAE of diffusers after ``latent: {use: diffusers_vae, finetune: …}``."""
    import diffusers

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        settle(diffusers.AutoencoderKLLTXVideo(**LTX)).save_pretrained(Path(folder) / "vae")
        given = {"use": "diffusers_vae", "path": f"{folder}/vae", "finetune": {"steps": 1, "batch": 2, "lr": 1e-3}}
        context = tiny_context(Path(folder) / "step", data=drawn(9, (64, 64), 4))
        return make_part("latent", given, installed()).build().run(context).bundle.codec().eval()


def decoder_component(name: str, ratio: str) -> Component:
    """Return the decoder of a small codec at a ratio, its own or one made of it."""
    made, _, codec_name = name.rpartition("-")
    foreign = codec_name == FOREIGN
    codec = copy.deepcopy(tuned()) if foreign else codec_of(codec_name, ratio)
    decoder = MADE[made](codec, "diffusers_vae" if foreign else CODECS[codec_name]) if made else codec
    return vae_decoder(decoder, torch.randn(1, codec.channels, 3, 2, 2))


def phone(codec: Any, plugin: str) -> torch.nn.Module:
    """Put a small decoder (``latent: decoder``) behind a codec's encoder."""
    options = DecoderOptions(widths=(16, 16, 8), frame_width=8)
    config = codec.config if plugin == "diffusers_vae" else config_of(codec)
    return settle(small_codec(codec, describe(ComponentSpec("latent", plugin, config), options)))


def cut(codec: Any, plugin: str) -> torch.nn.Module:  # noqa: ARG001 - as the others
    """Remove half of the channels inside the decoder's blocks (``prune: channels``)."""
    chosen = ChannelPruning(ChannelsOptions(ratio=0.5)).choose(codec, values=True)
    apply_edits(codec, chosen.edits(codec))
    return codec


def as_it_is(codec: Any, plugin: str) -> torch.nn.Module:  # noqa: ARG001 - as the others
    """Return the codec itself."""
    return codec


MADE = {"phone": phone, "cut": cut, "tuned": as_it_is}
"""What is made of a codec, by name."""


def component(name: str) -> Component:
    """Return a DiT or a decoder by its name in the table."""
    return dit_component(name) if name in DITS else decoder_component(*name.split())


def peak_gib() -> float:
    """Return the peak resident memory of this process, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
