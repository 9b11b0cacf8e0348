"""Tiny configurations of real DiTs, three in shape: the reference, LTX (norm and RoPE across heads), Wan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.plugins import installed
from dit_compress.recipe import make_part

if TYPE_CHECKING:
    from dit_compress.denoiser import Denoiser

MODELS = ("video_dit", "ltx", "wan")

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "video_dit": (
        "video_dit",
        {"preset": "tiny", "layers": 3, "heads": 4, "head_width": 12, "ffn": 64, "channels": 8, "text_width": 16},
    ),
    "ltx": (
        "diffusers",
        {
            "class_name": "LTXVideoTransformer3DModel",
            "config": {
                "in_channels": 8,
                "out_channels": 8,
                "num_attention_heads": 4,
                "attention_head_dim": 12,
                "cross_attention_dim": 48,
                "num_layers": 3,
                "caption_channels": 16,
            },
        },
    ),
    "wan": (
        "diffusers",
        {
            "class_name": "WanTransformer3DModel",
            "config": {
                "patch_size": [1, 2, 2],
                "num_attention_heads": 4,
                "attention_head_dim": 12,
                "in_channels": 8,
                "out_channels": 8,
                "text_dim": 16,
                "freq_dim": 32,
                "ffn_dim": 64,
                "num_layers": 3,
                "rope_max_seq_len": 32,
            },
        },
    ),
}


def tiny_denoiser(name: str, seed: int = 0) -> Denoiser:
    """A denoiser with random weights, none of them zero (a zero-initialised gate would hide every fault)."""
    import torch

    plugin, options = _CONFIGS[name]
    torch.manual_seed(seed)
    maker = make_part("model", {"use": plugin, **options}, installed()).build()
    module = maker.create().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    return maker.denoiser(module)
