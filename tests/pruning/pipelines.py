"""Pipelines of diffusers with tiny components, as somebody's folder has them; the caption encoders stay away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path

HEADS = {"num_attention_heads": 4, "num_layers": 3}
CHANNELS = {"in_channels": 4, "out_channels": 4}
IMAGE_VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "shift_factor": 0.1, "scaling_factor": 0.5,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


@dataclass(frozen=True)
class Pipeline:
    """One kind. remove, keep: what is pruned; again: what goes the second time. captions: sizes of what an encoder gives.

    out: the name of the result.
    """

    kind: str
    transformer: tuple[str, dict[str, Any]]
    vae: tuple[str, dict[str, Any]]
    absent: tuple[str, ...]
    captions: dict[str, tuple[int, ...]]
    call: dict[str, Any]
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    out: str = "frames"
    masks: tuple[str, ...] = ()
    remove: str = "block=1,head=1"
    again: str = "block=1"

    def save(self, folder: Path) -> None:
        """Write the whole pipeline with random weights, none of them zero."""
        torch.manual_seed(0)
        parts = {
            name: getattr(diffusers, kind)(**config)
            for name, (kind, config) in (("transformer", self.transformer), ("vae", self.vae))
        }
        with torch.no_grad():
            for parameter in parts["transformer"].parameters():
                parameter.add_(torch.randn_like(parameter) / 20)
        parts["scheduler"] = getattr(diffusers, self.scheduler)()
        self._type()(**parts, **dict.fromkeys(self.absent)).save_pretrained(folder)

    def sampled(self, folder: Path, **parts: Any) -> Tensor:
        """Two steps of the pipeline in a folder, parts of it exchanged, from one seed: decoded frames, or an image."""
        pipeline = self._type().from_pretrained(folder, **parts, **dict.fromkeys(self.absent))
        pipeline.set_progress_bar_config(disable=True)
        torch.manual_seed(1)
        captions = {name: torch.randn(1, *shape) for name, shape in self.captions.items()}
        captions |= {name: torch.ones(1, 6) for name in self.masks}
        options = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(2)}
        return getattr(pipeline(**captions, **options, **self.call), self.out)

    def _type(self) -> Any:
        return getattr(diffusers, self.kind)


T5 = ("text_encoder", "tokenizer")
TWO = (*T5, "text_encoder_2", "tokenizer_2")
BOTH = {"prompt_embeds": (6, 16), "negative_prompt_embeds": (6, 16)}
VIDEO = {"height": 64, "width": 64, "num_frames": 9}

PIPELINES = {
    "LTX": Pipeline(
        "LTXPipeline",
        (
            "LTXVideoTransformer3DModel",
            {**HEADS, **CHANNELS, "attention_head_dim": 12, "cross_attention_dim": 48, "caption_channels": 16},
        ),
        (
            "AutoencoderKLLTXVideo",
            {
                "latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8),
                "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1),
            },
        ),
        T5, BOTH, VIDEO, masks=("prompt_attention_mask", "negative_prompt_attention_mask"),
    ),
    "Flux": Pipeline(
        "FluxPipeline",
        (
            "FluxTransformer2DModel",
            {
                **HEADS, "num_single_layers": 3, "in_channels": 16, "attention_head_dim": 16, "joint_attention_dim": 16,
                "pooled_projection_dim": 8, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True,
            },
        ),
        ("AutoencoderKL", IMAGE_VAE),
        TWO, {"prompt_embeds": (6, 16), "pooled_prompt_embeds": (8,)}, {"height": 16, "width": 16}, out="images",
        remove="block=1,block.transformer_blocks=1,head=1", again="block.transformer_blocks=1",
    ),
    "SD3": Pipeline(
        "StableDiffusion3Pipeline",
        (
            "SD3Transformer2DModel",
            {
                **HEADS, **CHANNELS, "sample_size": 8, "patch_size": 2, "attention_head_dim": 8, "caption_projection_dim": 32,
                "joint_attention_dim": 16, "pooled_projection_dim": 8, "pos_embed_max_size": 16, "qk_norm": "rms_norm",
                "dual_attention_layers": (0,),
            },
        ),
        ("AutoencoderKL", IMAGE_VAE),
        (*TWO, "text_encoder_3", "tokenizer_3"),
        {**BOTH, "pooled_prompt_embeds": (8,), "negative_pooled_prompt_embeds": (8,)},
        {"height": 16, "width": 16}, out="images",
    ),
    "CogVideoX": Pipeline(
        "CogVideoXPipeline",
        (
            "CogVideoXTransformer3DModel",
            {
                **HEADS, **CHANNELS, "attention_head_dim": 16, "time_embed_dim": 4, "text_embed_dim": 16, "sample_width": 8,
                "sample_height": 8, "sample_frames": 9, "patch_size": 2, "max_text_seq_length": 6,
            },
        ),
        (
            "AutoencoderKLCogVideoX",
            {
                "latent_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2,
                "down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4,
            },
        ),
        T5, BOTH, VIDEO, scheduler="CogVideoXDDIMScheduler",
    ),
    "HunyuanVideo": Pipeline(
        "HunyuanVideoPipeline",
        (
            "HunyuanVideoTransformer3DModel",
            {
                **HEADS, **CHANNELS, "attention_head_dim": 10, "num_single_layers": 3, "num_refiner_layers": 2,
                "patch_size": 1, "patch_size_t": 1, "guidance_embeds": True, "text_embed_dim": 16,
                "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4),
            },
        ),
        (
            "AutoencoderKLHunyuanVideo",
            {
                "latent_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4,
                "down_block_types": ("HunyuanVideoDownBlock3D",) * 4, "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
            },
        ),
        TWO, {"prompt_embeds": (6, 16), "pooled_prompt_embeds": (8,)},
        {"height": 16, "width": 16, "num_frames": 5}, masks=("prompt_attention_mask",),
        remove="block=1,block.transformer_blocks=1,head=1", again="block.transformer_blocks=1",
    ),
    "Wan": Pipeline(
        "WanPipeline",
        (
            "WanTransformer3DModel",
            {
                **HEADS, **CHANNELS, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32,
                "patch_size": (1, 2, 2), "rope_max_seq_len": 32, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
            },
        ),
        (
            "AutoencoderKLWan",
            {
                "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
                "temperal_downsample": [False, True, True], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4,
            },
        ),
        T5, BOTH, {"height": 16, "width": 16, "num_frames": 5},
    ),
}  # fmt: skip
