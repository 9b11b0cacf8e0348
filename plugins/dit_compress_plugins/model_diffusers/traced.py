"""Models whose own ``forward`` decides by values, written for tracers: the same numbers, and every shape fixed.

HunyuanVideo 1.5 sorts the tokens of both texts by their masks, valid ones first, since its attention was made for
packed sequences, and asks whether the image's embeddings are zeros. Its text tokens have no positions and its blocks
mask the padding, so their order changes nothing; a T2V model masks all tokens of the image, so they are left out.
Sums are taken in another order: ``tests/plugins/test_model_diffusers_traced.py`` holds both to 1e-5.

Shapes: B batch, C channels, T H W latent frames, height, width, L M text lengths, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress_plugins.model_diffusers.convention import patch_of
from dit_compress_plugins.model_diffusers.layouts import unpack

if TYPE_CHECKING:
    from torch import Tensor

PACKED = "packed_video"
TEXT, GLYPHS = 0, 1
"""Kinds of tokens, as the model embeds them."""


def need_own_size(module: Any, latent_BCTHW: Tensor) -> None:
    """Raise a UserError where a CogVideoX model would make its positions anew, which it does outside of any trace."""
    embed: Any = getattr(module, "patch_embed", None)
    if not hasattr(embed, "_get_positional_embeddings") or not hasattr(embed, "pos_embedding"):
        return
    latent, *size = latent_BCTHW.shape[2:]
    found = ((latent - 1) * embed.temporal_compression_ratio + 1, *size)
    own = (embed.sample_frames, embed.sample_height, embed.sample_width)
    if found != own:
        raise UserError(
            f"its positions are for {own[0]} frames of {own[1]}x{own[2]} cells; at {found[0]} of {found[1]}x{found[2]} "
            f"{type(embed).__name__} makes others, which torch.export can't follow",
            where="component dit_step, patch_embed",
            mend="Export it at the size that its config states, or state this one there (sample_frames, sample_height, "
            "sample_width)",
        )


def has_own_order(module: Any) -> bool:
    """Tell whether tracers need :func:`in_order` instead of the module's ``forward``."""
    return type(module).__name__ == "HunyuanVideo15Transformer3DModel" and module.config.task_type == "t2v"


def in_order(module: Any, given: dict[str, Any]) -> tuple[Tensor]:
    """Call a HunyuanVideo 1.5 T2V model with its tokens in the order in which they come.

    given: the arguments of its ``forward`` by name.
    """
    latent_BCTHW, timestep_B = given["hidden_states"], given["timestep"]
    mask_BL, mask_BM = given["encoder_attention_mask"], given["encoder_attention_mask_2"]
    rope, temb_BD = module.rope(latent_BCTHW), module.time_embed(timestep_B)
    text_BLD = module.context_embedder(given["encoder_hidden_states"], timestep_B, mask_BL)
    glyphs_BMD = module.context_embedder_2(given["encoder_hidden_states_2"])
    parts = [(glyphs_BMD, mask_BM, GLYPHS), (text_BLD, mask_BL, TEXT)]
    tokens = torch.cat([part + module.cond_type_embed(mask.long() * 0 + kind) for part, mask, kind in parts], 1)
    mask = torch.cat([mask.bool() for _, mask, _ in parts], 1)
    x = module.x_embedder(latent_BCTHW)
    for block in module.transformer_blocks:
        x, tokens = block(x, tokens, temb_BD, mask, rope)
    tokens_BSP = module.proj_out(module.norm_out(x, temb_BD))
    batch, _, *size = latent_BCTHW.shape
    return (unpack(tokens_BSP, PACKED, patch_of(module.config, PACKED), (batch, *size)),)
