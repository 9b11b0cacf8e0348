"""Image encoders of a few thousand weights, with what prepares images for them."""

from __future__ import annotations

from typing import Any

import transformers

WIDTH = 12
_SIZES = {
    "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def clip() -> tuple[Any, Any]:
    """Return an image encoder of CLIP and its processor, as Wan 2.1 has: four embeddings, and one of the whole."""
    side = _SIZES["image_size"]
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_SIZES, projection_dim=WIDTH)), processor


def siglip() -> tuple[Any, Any]:
    """Return an image encoder of SigLIP and its processor, as HunyuanVideo 1.5 has."""
    side = _SIZES["image_size"]
    processor = transformers.SiglipImageProcessor(size={"height": side, "width": side})
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_SIZES)), processor
