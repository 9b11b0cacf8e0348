"""Small configurations of the transformers in diffusers, with inputs of the right shapes: fixtures, no adapters.

Sizes are chosen so that nothing is degenerate: 4 blocks where the class allows it, 4 heads (2 key-value heads where
there are groups), several tokens along every axis. Derived from the configurations of diffusers' own tests
(Apache-2.0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

Fixture = tuple[dict[str, Any], dict[str, Any]]
HEADS, DEPTH = 4, 4


def build(name: str, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Build the module in eval mode, and the keyword arguments of one call; no weight is zero, no norm is plain."""
    torch.manual_seed(seed)
    config, inputs = FIXTURES[name]()
    module = class_named(name)(**config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
            elif bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return module, inputs


def class_named(name: str) -> Any:
    """Return a transformer class of diffusers by its name."""
    import importlib

    import diffusers

    return getattr(diffusers, name, None) or getattr(importlib.import_module("diffusers.models.transformers"), name)


def r(*shape: int) -> Tensor:
    """Return random numbers."""
    return torch.randn(shape)


def one(*shape: int) -> Tensor:
    """Return ones: masks that hide nothing."""
    return torch.ones(shape)


def clock(batch: int = 1) -> Tensor:
    """Return timesteps."""
    return torch.tensor([44, 239][:batch])


def half(batch: int = 1) -> Tensor:
    """Return timesteps between 0 and 1."""
    return torch.tensor([0.44, 0.23][:batch])


def grid(rows: int, columns: int, axes: int = 3) -> Tensor:
    """Return positions of image tokens."""
    ids = torch.zeros(rows, columns, axes)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)
    return ids.flatten(0, 1)


def words(count: int, axes: int = 3) -> Tensor:
    """Return positions of text tokens."""
    ids = torch.zeros(count, axes)
    ids[:, -1] = torch.arange(count)
    return ids


# ------------------------------------------------------------------ joint text and image, then single blocks


def _flux_like(**more: Any) -> Fixture:
    config = {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": DEPTH,
        "num_single_layers": DEPTH,
        "attention_head_dim": 8,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 12,
        "axes_dims_rope": [2, 2, 4],
        **more,
    }
    inputs = {
        "hidden_states": r(1, 6, 4),
        "encoder_hidden_states": r(1, 5, 12),
        "img_ids": grid(2, 3),
        "txt_ids": words(5),
        "timestep": half(),
    }
    return config, inputs


def _flux() -> Fixture:
    config, inputs = _flux_like(pooled_projection_dim=8)
    return config, {**inputs, "pooled_projections": r(1, 8)}


def _flux2() -> Fixture:
    config, inputs = _flux_like(axes_dims_rope=[2, 2, 2, 2], timestep_guidance_channels=16)
    ids = {"img_ids": grid(2, 3, 4)[None], "txt_ids": words(5, 4)[None]}
    return config, {**inputs, **ids, "guidance": half()}


def _chroma() -> Fixture:
    more = {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1}
    return _flux_like(**more)


def _bria() -> Fixture:
    return _flux_like(pooled_projection_dim=None, axes_dims_rope=[0, 4, 4])


def _bria_fibo() -> Fixture:
    config, inputs = _flux_like(
        pooled_projection_dim=None, axes_dims_rope=[0, 4, 4], joint_attention_dim=24, text_encoder_dim=16
    )
    layers = [r(1, 5, 16) for _ in range(2 * DEPTH)]
    return config, {**inputs, "encoder_hidden_states": r(1, 5, 24), "text_encoder_layers": layers}


def _longcat_image() -> Fixture:
    config, inputs = _flux_like(pooled_projection_dim=8)
    return config, {**inputs, "guidance": half()}


def _ovis() -> Fixture:
    return _flux_like(out_channels=4)


def _hunyuan_video() -> Fixture:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": HEADS,
        "attention_head_dim": 10,
        "num_layers": DEPTH,
        "num_single_layers": DEPTH,
        "num_refiner_layers": 2,
        "patch_size": 1,
        "patch_size_t": 1,
        "guidance_embeds": True,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (2, 4, 4),
        "image_condition_type": None,
    }
    inputs = {
        "hidden_states": r(1, 4, 2, 2, 3),
        "timestep": clock(),
        "encoder_hidden_states": r(1, 5, 16),
        "pooled_projections": r(1, 8),
        "encoder_attention_mask": one(1, 5),
        "guidance": half(),
    }
    return config, inputs


def _framepack() -> Fixture:
    config, inputs = _hunyuan_video()
    config |= {"patch_size": 2, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True}
    inputs |= {
        "hidden_states": r(1, 4, 3, 4, 4),
        "image_embeds": r(1, 5, 16),
        "indices_latents": one(3),
        "latents_clean": r(1, 4, 2, 4, 4),
        "indices_latents_clean": one(2),
        "latents_history_2x": r(1, 4, 2, 4, 4),
        "indices_latents_history_2x": one(2),
        "latents_history_4x": r(1, 4, (DEPTH), 4, 4),
        "indices_latents_history_4x": one(DEPTH),
    }
    return config, inputs


def _hunyuan_video15() -> Fixture:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": HEADS,
        "attention_head_dim": 8,
        "num_layers": DEPTH,
        "num_refiner_layers": 2,
        "mlp_ratio": 2.0,
        "patch_size": 1,
        "patch_size_t": 1,
        "text_embed_dim": 16,
        "text_embed_2_dim": 8,
        "image_embed_dim": 12,
        "rope_axes_dim": (2, 2, 4),
        "target_size": 16,
        "task_type": "t2v",
    }
    inputs = {
        "hidden_states": r(1, 4, 2, 2, 3),
        "timestep": half(),
        "encoder_hidden_states": r(1, 6, 16),
        "encoder_hidden_states_2": r(1, 4, 8),
        "encoder_attention_mask": one(1, 6),
        "encoder_attention_mask_2": one(1, 4),
        "image_embeds": torch.zeros(1, 3, 12),
    }
    return config, inputs


def _motif() -> Fixture:
    config = {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": HEADS,
        "attention_head_dim": 12,
        "num_layers": DEPTH,
        "num_single_layers": DEPTH,
        "num_decoder_layers": 0,
        "mlp_ratio": 4.0,
        "patch_size": 1,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "norm_type": "layer_norm",
        "text_embed_dim": 16,
        "image_embed_dim": 4,
        "rope_theta": 256.0,
        "rope_axes_dim": (4, 4, 4),
        "enable_text_cross_attention_dual": False,
        "enable_text_cross_attention_single": False,
    }
    return config, {"hidden_states": r(1, 9, 2, 2, 3), "encoder_hidden_states": r(1, 5, 16), "timestep": clock()}


# ------------------------------------------------------------------ joint text and image


def _sd3() -> Fixture:
    config = {
        "sample_size": 8,
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": DEPTH,
        "attention_head_dim": 8,
        "num_attention_heads": HEADS,
        "caption_projection_dim": 32,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "out_channels": 4,
        "pos_embed_max_size": 16,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    inputs = {
        "hidden_states": r(1, 4, 2, 3),
        "encoder_hidden_states": r(1, 5, 16),
        "pooled_projections": r(1, 16),
        "timestep": clock(),
    }
    return config, inputs


def _qwen(**more: Any) -> Fixture:
    config = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": DEPTH,
        "attention_head_dim": 16,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 16,
        "axes_dims_rope": (8, 4, 4),
        **more,
    }
    inputs = {
        "hidden_states": r(1, 6, 16),
        "encoder_hidden_states": r(1, 5, 16),
        "encoder_hidden_states_mask": one(1, 5).long(),
        "timestep": half(),
        "img_shapes": [(1, 2, 3)],
    }
    return config, inputs


def _nucleus() -> Fixture:
    return _qwen(moe_enabled=False, capacity_factors=[8.0] * DEPTH)


def _auraflow() -> Fixture:
    config = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_mmdit_layers": DEPTH,
        "num_single_dit_layers": DEPTH,
        "attention_head_dim": 8,
        "num_attention_heads": HEADS,
        "caption_projection_dim": 32,
        "joint_attention_dim": 16,
        "out_channels": 4,
        "pos_embed_max_size": 64,
    }
    return config, {"hidden_states": r(1, 4, 4, 6), "encoder_hidden_states": r(1, 5, 16), "timestep": half()}


def _easyanimate() -> Fixture:
    config = {
        "attention_head_dim": 16,
        "num_attention_heads": HEADS,
        "in_channels": 4,
        "mmdit_layers": DEPTH,
        "num_layers": DEPTH,
        "out_channels": 4,
        "patch_size": 2,
        "sample_height": 60,
        "sample_width": 90,
        "text_embed_dim": 16,
        "time_embed_dim": 8,
        "time_position_encoding_type": "3d_rope",
    }
    return config, {"hidden_states": r(1, 4, 2, 4, 6), "timestep": clock(), "encoder_hidden_states": r(1, 5, 16)}


def _mochi() -> Fixture:
    config = {
        "patch_size": 2,
        "num_attention_heads": HEADS,
        "attention_head_dim": 8,
        "num_layers": DEPTH,
        "pooled_projection_dim": 16,
        "in_channels": 4,
        "qk_norm": "rms_norm",
        "text_embed_dim": 16,
        "time_embed_dim": 4,
        "activation_fn": "swiglu",
        "max_sequence_length": 5,
    }
    inputs = {
        "hidden_states": r(1, 4, 2, 4, 6),
        "encoder_hidden_states": r(1, 5, 16),
        "timestep": clock(),
        "encoder_attention_mask": one(1, 5).bool(),
    }
    return config, inputs


def _joy(**more: Any) -> Fixture:
    config = {
        "patch_size": [1, 2, 2],
        "in_channels": 16,
        "hidden_size": 64,
        "num_attention_heads": HEADS,
        "text_dim": 16,
        "num_layers": DEPTH,
        "rope_dim_list": [4, 6, 6],
        "theta": 256,
    }
    return config, {
        "hidden_states": r(1, 16, 2, 4, 6),
        "encoder_hidden_states": r(1, 5, 16),
        "timestep": half(),
        **more,
    }


def _joy_plus() -> Fixture:
    return _joy(hidden_states=r(1, 4, 16, 1, 2, 2), shape_list=[[(1, 2, 1), (1, 1, 2)]])


def _hidream() -> Fixture:
    config = {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "num_single_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": HEADS,
        "caption_channels": [8, 4],
        "text_emb_dim": 8,
        "num_routed_experts": 2,
        "num_activated_experts": 2,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (8, 8),
        "llama_layers": tuple(range(6)),
        "force_inference_output": True,
    }
    inputs = {
        "hidden_states": r(1, 4, 4, 4),
        "encoder_hidden_states_t5": r(1, 5, 8),
        "encoder_hidden_states_llama3": r(6, 1, 5, 4),
        "pooled_embeds": r(1, 8),
        "timesteps": clock(),
    }
    return config, inputs


def _cosmos3() -> Fixture:
    config = {
        "head_dim": 6,
        "hidden_act": "relu2",
        "hidden_size": 24,
        "intermediate_size": 24,
        "latent_channel": 2,
        "latent_patch_size": 1,
        "num_attention_heads": HEADS,
        "num_hidden_layers": DEPTH,
        "num_key_value_heads": 2,
        "patch_latent_dim": 2,
        "qk_norm_for_text": False,
        "rms_norm_eps": 1e-5,
        "rope_axes_dim": [1, 1, 1],
        "rope_theta": 1e8,
        "vocab_size": 32,
    }
    tokens, text = 6, 3
    inputs = {
        "input_ids": torch.tensor([1, 2, 5]),
        "text_indexes": torch.arange(text),
        "position_ids": torch.arange(text + tokens).expand(3, -1).contiguous(),
        "und_len": text,
        "sequence_length": text + tokens,
        "vision_tokens": [r(1, 2, 1, 2, 3)],
        "vision_token_shapes": [(1, 2, 3)],
        "vision_sequence_indexes": torch.arange(text, text + tokens),
        "vision_mse_loss_indexes": torch.arange(text, text + tokens),
        "vision_timesteps": one(tokens),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }
    return config, inputs


def _prx() -> Fixture:
    config = {
        "in_channels": 4,
        "patch_size": 2,
        "context_in_dim": 32,
        "hidden_size": 32,
        "mlp_ratio": 3.5,
        "num_heads": HEADS,
        "depth": DEPTH,
        "axes_dim": [4, 4],
        "theta": 10_000,
    }
    return config, {"hidden_states": r(1, 4, 4, 6), "encoder_hidden_states": r(1, 5, 32), "timestep": half()}


# ------------------------------------------------------------------ text and image through one set of weights


def _cogvideox() -> Fixture:
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 4,
        "text_embed_dim": 8,
        "num_layers": DEPTH,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 8,
        "patch_size": 2,
        "temporal_compression_ratio": 4,
        "max_text_seq_length": 5,
        "use_rotary_positional_embeddings": True,
    }
    inputs = {
        "hidden_states": r(1, 2, 4, 4, 6),
        "encoder_hidden_states": r(1, 5, 8),
        "timestep": clock(),
        "image_rotary_emb": (r(12, 8), r(12, 8)),
    }
    return config, inputs


def _consisid() -> Fixture:
    config, inputs = _cogvideox()
    config |= {
        "cross_attn_interval": 2,
        "is_train_face": True,
        "is_kps": False,
        "cross_attn_dim_head": 4,
        "cross_attn_num_heads": 2,
        "LFE_id_dim": 2,
        "LFE_vit_dim": 2,
        "LFE_depth": 5,
        "LFE_dim_head": 8,
        "LFE_num_heads": 2,
        "LFE_num_id_token": 1,
        "LFE_num_querie": 1,
        "LFE_output_dim": 21,
        "LFE_ff_mult": 1,
        "LFE_num_scale": 1,
    }
    return config, {**inputs, "id_vit_hidden": [r(1, 2, 2)], "id_cond": r(1, 2)}


def _cogview(**more: Any) -> Fixture:
    config = {
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": DEPTH,
        "attention_head_dim": 8,
        "num_attention_heads": HEADS,
        "out_channels": 4,
        "text_embed_dim": 8,
        "time_embed_dim": 8,
        "condition_dim": 4,
        **more,
    }
    size = torch.tensor([[32, 48]])
    inputs = {
        "hidden_states": r(1, 4, 4, 6),
        "encoder_hidden_states": r(1, 5, 8),
        "timestep": clock(),
        "original_size": size,
        "target_size": size,
        "crop_coords": 0 * size,
    }
    return config, inputs


def _cogview3() -> Fixture:
    return _cogview(pos_embed_max_size=8, sample_size=8)


def _glm() -> Fixture:
    config, inputs = _cogview(prior_vq_quantizer_codebook_size=64)
    inputs.pop("original_size")
    tokens = {"prior_token_id": torch.arange(6)[None], "prior_token_drop": torch.zeros(1, 6, dtype=torch.bool)}
    return config, {**inputs, **tokens, "target_size": one(1, 2) * 8, "crop_coords": torch.zeros(1, 2)}


def _ernie() -> Fixture:
    config = {
        "hidden_size": 32,
        "num_attention_heads": HEADS,
        "num_layers": DEPTH,
        "ffn_hidden_size": 24,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 1,
        "text_in_dim": 16,
        "rope_theta": 256,
        "rope_axes_dim": (4, 2, 2),
        "qk_layernorm": True,
    }
    inputs = {
        "hidden_states": r(1, 4, 2, 3),
        "timestep": half(),
        "text_bth": r(1, 5, 16),
        "text_lens": torch.tensor([5]),
    }
    return config, inputs


def _zimage() -> Fixture:
    config = {
        "all_patch_size": (2,),
        "all_f_patch_size": (1,),
        "in_channels": 4,
        "dim": 64,
        "n_layers": DEPTH,
        "n_refiner_layers": 2,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "qk_norm": True,
        "cap_feat_dim": 16,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
        "axes_dims": [8, 4, 4],
        "axes_lens": [64, 16, 16],
    }
    return config, {"x": [r(4, 1, 4, 6)], "cap_feats": [r(5, 16)], "t": half()}


def _lumina2() -> Fixture:
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 32,
        "num_layers": DEPTH,
        "num_refiner_layers": 2,
        "num_attention_heads": HEADS,
        "num_kv_heads": 2,
        "multiple_of": 2,
        "scaling_factor": 1.0,
        "axes_dim_rope": (4, 2, 2),
        "axes_lens": (32, 32, 32),
        "cap_feat_dim": 16,
    }
    inputs = {
        "hidden_states": r(1, 4, 4, 6),
        "encoder_hidden_states": r(1, 5, 16),
        "timestep": half(),
        "encoder_attention_mask": one(1, 5).bool(),
    }
    return config, inputs


def _ideogram() -> Fixture:
    config = {
        "in_channels": 16,
        "num_layers": DEPTH,
        "attention_head_dim": 8,
        "num_attention_heads": HEADS,
        "intermediate_size": 24,
        "adaln_dim": 16,
        "llm_features_dim": 24,
        "rope_theta": 10_000,
        "mrope_section": (2, 1, 1),
    }
    inputs = {
        "hidden_states": r(1, 8, 16),
        "encoder_hidden_states": r(1, 8, 24),
        "timestep": half(),
        "position_ids": torch.arange(24).reshape(1, 8, 3),
        "segment_ids": one(1, 8).long(),
        "indicator": torch.tensor([[3, 3, 3, 3, 2, 2, 2, 2]]),
    }
    return config, inputs


def _krea() -> Fixture:
    config = {
        "in_channels": 16,
        "num_layers": DEPTH,
        "attention_head_dim": 8,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "timestep_embed_dim": 8,
        "text_hidden_dim": 32,
        "num_text_layers": 3,
        "text_num_attention_heads": HEADS,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 2,
        "num_refiner_text_blocks": 2,
        "axes_dims_rope": (4, 2, 2),
        "rope_theta": 1000.0,
    }
    inputs = {
        "hidden_states": r(1, 6, 16),
        "encoder_hidden_states": r(1, 5, 3, 32),
        "timestep": half(),
        "position_ids": r(11, 3),
        "encoder_attention_mask": one(1, 5).bool(),
    }
    return config, inputs


def _minimax_h3() -> Fixture:
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": 16,
        "hidden_size": 24,
        "num_layers": DEPTH,
        "num_refiner_layers": 2,
        "ffn_dim": 20,
        "in_channels": 4,
        "audio_in_channels": 6,
        "patch_size": (1, 2, 2),
        "text_dim": 8,
        "freq_dim": 8,
        "time_embed_hidden_dim": 24,
        "time_embed_dim": 16,
        "rope_freq_dim": 2,
    }
    inputs = {
        "hidden_states": r(1, 8, 16),
        "audio_hidden_states": r(1, 6, 6),
        "encoder_hidden_states": r(1, 4, 8),
        "timestep": half(2),
        "timestep_indices": torch.tensor([0] * 9 + [1] * 9),
        "token_tags": torch.tensor([0] * 4 + [1] * 6 + [2] * 8),
        "position_ids": r(18, 3),
        "video_indices": torch.arange(10, 18),
        "audio_indices": torch.arange(4, 10),
        "text_indices": torch.arange(4),
    }
    return config, inputs


def _minimax_music() -> Fixture:
    config = {
        "in_channels": 8,
        "condition_dim": 16,
        "num_layers": DEPTH,
        "num_attention_heads": HEADS,
        "attention_head_dim": 8,
        "ff_inner_dim": 20,
        "rotary_dim": 4,
        "fourier_embedding_dim": 8,
    }
    return config, {"hidden_states": r(1, 8, 6), "encoder_hidden_states": r(1, 6, 16), "timestep": half()}


def _omnigen() -> Fixture:
    config = {
        "hidden_size": 16,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "intermediate_size": 20,
        "num_layers": DEPTH,
        "pad_token_id": 0,
        "vocab_size": 50,
        "in_channels": 4,
        "time_step_dim": 4,
        "rope_scaling": {"long_factor": [1, 2], "short_factor": [1, 2]},
    }
    tokens = 5 + 1 + 6
    inputs = {
        "hidden_states": r(1, 4, 4, 6),
        "timestep": half(),
        "input_ids": torch.tensor([[3, 1, 4, 1, 5]]),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": one(1, tokens, tokens),
        "position_ids": torch.arange(tokens)[None],
    }
    return config, inputs


# ------------------------------------------------------------------ self-attention, and cross-attention to text


def _dit() -> Fixture:
    config = {
        "in_channels": 4,
        "out_channels": 8,
        "num_attention_heads": HEADS,
        "attention_head_dim": 4,
        "attention_bias": True,
        "num_layers": DEPTH,
        "num_embeds_ada_norm": 8,
        "patch_size": 2,
        "sample_size": 8,
    }
    inputs = {"hidden_states": r(1, 4, 8, 8), "timestep": clock(), "class_labels": torch.tensor([3])}
    return config, inputs


def _pixart() -> Fixture:
    config = {
        "sample_size": 8,
        "num_layers": DEPTH,
        "patch_size": 2,
        "attention_head_dim": 4,
        "num_attention_heads": HEADS,
        "in_channels": 4,
        "cross_attention_dim": 16,
        "out_channels": 8,
        "use_additional_conditions": False,
        "caption_channels": None,
    }
    inputs = {
        "hidden_states": r(1, 4, 8, 8),
        "timestep": clock(),
        "encoder_hidden_states": r(1, 5, 16),
        "added_cond_kwargs": {"aspect_ratio": None, "resolution": None},
    }
    return config, inputs


def _latte() -> Fixture:
    config = {
        "sample_size": 8,
        "num_layers": DEPTH,
        "patch_size": 2,
        "attention_head_dim": 4,
        "num_attention_heads": HEADS,
        "caption_channels": 8,
        "in_channels": 4,
        "cross_attention_dim": 16,
        "out_channels": 8,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "video_length": 3,
    }
    inputs = {
        "hidden_states": r(1, 4, 3, 8, 8),
        "encoder_hidden_states": r(1, 5, 8),
        "timestep": clock(),
        "enable_temporal_attentions": True,
    }
    return config, inputs


def _allegro() -> Fixture:
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": DEPTH,
        "cross_attention_dim": 48,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 8,
        "caption_channels": 8,
    }
    return config, {"hidden_states": r(1, 4, 2, 4, 6), "encoder_hidden_states": r(1, 5, 8), "timestep": clock()}


def _prior() -> Fixture:
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": 8,
        "num_layers": DEPTH,
        "embedding_dim": 8,
        "num_embeddings": 7,
        "additional_embeddings": 4,
    }
    inputs = {
        "hidden_states": r(2, 8),
        "timestep": 2,
        "proj_embedding": r(2, 8),
        "encoder_hidden_states": r(2, 7, 8),
    }
    return config, inputs


def _hunyuan_dit() -> Fixture:
    config = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": DEPTH,
        "attention_head_dim": 8,
        "num_attention_heads": HEADS,
        "cross_attention_dim": 8,
        "cross_attention_dim_t5": 8,
        "pooled_projection_dim": 4,
        "hidden_size": 32,
        "text_len": 4,
        "text_len_t5": 4,
    }
    inputs = {
        "hidden_states": r(1, 4, 8, 8),
        "encoder_hidden_states": r(1, 4, 8),
        "text_embedding_mask": one(1, 4),
        "encoder_hidden_states_t5": r(1, 4, 8),
        "text_embedding_mask_t5": one(1, 4),
        "timestep": clock().float(),
        "image_meta_size": r(1, 6),
        "style": torch.zeros(1, dtype=torch.long),
        "image_rotary_emb": [r(16, 8), r(16, 8)],
    }
    return config, inputs


def _stable_audio() -> Fixture:
    config = {
        "sample_size": 6,
        "in_channels": 4,
        "num_layers": DEPTH,
        "attention_head_dim": 4,
        "num_attention_heads": HEADS,
        "num_key_value_attention_heads": 2,
        "out_channels": 4,
        "cross_attention_dim": 8,
        "time_proj_dim": 8,
        "global_states_input_dim": 8,
        "cross_attention_input_dim": 8,
    }
    inputs = {
        "hidden_states": r(1, 4, 6),
        "timestep": half(),
        "encoder_hidden_states": r(1, 5, 8),
        "global_hidden_states": r(1, 1, 8),
        "rotary_embedding": (r(7, 2), r(7, 2)),
    }
    return config, inputs


def _stable_audio3() -> Fixture:
    config = {
        "io_channels": 8,
        "patch_size": 1,
        "embed_dim": 32,
        "depth": DEPTH,
        "num_heads": HEADS,
        "cond_token_dim": 16,
        "global_cond_dim": 12,
        "local_add_cond_dim": 5,
        "timestep_features_dim": 16,
        "ff_mult": 2,
        "num_memory_tokens": 3,
        "use_differential_attention": False,
    }
    inputs = {
        "hidden_states": r(1, 8, 6),
        "timestep": half(),
        "encoder_hidden_states": r(1, 5, 16),
        "global_hidden_states": r(1, 12),
    }
    return config, inputs


def _ace_step() -> Fixture:
    config = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "in_channels": 24,
        "audio_acoustic_hidden_dim": 8,
        "patch_size": 2,
        "sliding_window": 2,
    }
    inputs = {
        "hidden_states": r(1, 12, 8),
        "timestep": half(),
        "timestep_r": half(),
        "encoder_hidden_states": r(1, 5, 32),
        "context_latents": r(1, 12, 16),
    }
    return config, inputs


def _cosmos() -> Fixture:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": HEADS,
        "attention_head_dim": 12,
        "num_layers": DEPTH,
        "mlp_ratio": 2,
        "text_embed_dim": 16,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "patch_size": (1, 2, 2),
        "rope_scale": (2.0, 1.0, 1.0),
        "concat_padding_mask": False,
        "extra_pos_embed_type": "learnable",
    }
    inputs = {
        "hidden_states": r(1, 4, 2, 4, 6),
        "timestep": half(),
        "encoder_hidden_states": r(1, 5, 16),
        "fps": 30,
    }
    return config, inputs


def _lumina_next() -> Fixture:
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 32,
        "num_layers": DEPTH,
        "num_attention_heads": HEADS,
        "num_kv_heads": 2,
        "multiple_of": 8,
        "learn_sigma": False,
        "qk_norm": True,
        "cross_attention_dim": 16,
        "scaling_factor": 1.0,
    }
    inputs = {
        "hidden_states": r(1, 4, 4, 6),
        "encoder_hidden_states": r(1, 5, 16),
        "timestep": half(),
        "encoder_mask": one(1, 5),
        "image_rotary_emb": torch.polar(one(8, 8, 4), r(8, 8, 4)),
        "cross_attention_kwargs": {},
    }
    return config, inputs


def _temporal() -> Fixture:
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": 4,
        "in_channels": 4,
        "num_layers": DEPTH,
        "norm_num_groups": 1,
    }
    return config, {"hidden_states": r(6, 4, 2, 3), "timestep": clock(), "num_frames": 3}


# ------------------------------------------------------------------ norms across heads


def _wan_like(**more: Any) -> Fixture:
    config = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": HEADS,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 20,
        "num_layers": DEPTH,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
        **more,
    }
    return config, {"hidden_states": r(1, 4, 2, 4, 6), "encoder_hidden_states": r(1, 5, 16), "timestep": clock()}


def _chrono() -> Fixture:
    return _wan_like(rope_temporal_skip_len=8)


def _anyflow(**more: Any) -> Fixture:
    config, inputs = _wan_like(gate_value=0.25, deltatime_type="r", **more)
    config.pop("qk_norm")
    frames = {"hidden_states": r(1, 4, 4, 8, 8), "timestep": one(1, 4) * 500, "r_timestep": one(1, 4) * 250}
    return config, {**inputs, **frames}


def _anyflow_far() -> Fixture:
    config, inputs = _anyflow(compressed_patch_size=(1, 4, 4), full_chunk_limit=3)
    return config, {**inputs, "chunk_partition": [2, 2]}


def _helios() -> Fixture:
    config, inputs = _wan_like(
        rope_dim=(4, 4, 4),
        has_multi_term_memory_patch=True,
        guidance_cross_attn=True,
        zero_history_timestep=True,
        is_amplify_history=False,
    )
    config.pop("rope_max_seq_len")
    more = {
        "hidden_states": r(1, 4, 2, 8, 8),
        "indices_hidden_states": one(1, 2),
        "indices_latents_history_short": one(1, 1),
        "indices_latents_history_mid": one(1, 1),
        "indices_latents_history_long": one(1, 4),
        "latents_history_short": r(1, 4, 1, 8, 8),
        "latents_history_mid": r(1, 4, 1, 8, 8),
        "latents_history_long": r(1, 4, 4, 8, 8),
    }
    return config, {**inputs, **more}


def _wan_vace() -> Fixture:
    config, inputs = _wan_like(vace_layers=[0, 2], vace_in_channels=12)
    return config, {**inputs, "control_hidden_states": r(1, 12, 2, 4, 6)}


def _wan_animate() -> Fixture:
    config, inputs = _wan_like(
        in_channels=12,
        latent_channels=4,
        image_dim=16,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    more = {
        "hidden_states": r(1, 12, 3, 4, 4),
        "encoder_hidden_states_image": r(1, 5, 16),
        "pose_hidden_states": r(1, 4, 2, 4, 4),
        "face_pixel_values": r(1, 3, 5, 16, 16),
    }
    return config, {**inputs, **more}


def _wan_animate2() -> Fixture:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    config = {
        "patch_size": (1, 2, 2),
        "text_len": 16,
        "in_dim": 36,
        "dim": 128,
        "ffn_dim": 40,
        "freq_dim": 64,
        "text_dim": 32,
        "out_dim": 16,
        "num_heads": HEADS,
        "num_layers": DEPTH,
        "cross_attn_norm": True,
        "use_img_emb": True,
    }
    inputs = {
        "hidden_states": [r(16, 2, 4, 4)],
        "timestep": half(),
        "encoder_hidden_states": [r(8, 32)],
        "condition_latents": [r(20, 2, 4, 4)],
        "encoder_hidden_states_image": r(1, 4, 1280),
        "kv_cache": WanAnimate2KVCache(DEPTH),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }
    return config, inputs


def _longcat_audio() -> Fixture:
    config = {
        "dit_dim": 64,
        "dit_depth": DEPTH,
        "dit_heads": HEADS,
        "dit_text_dim": 32,
        "latent_dim": 8,
        "text_conv": False,
    }
    inputs = {
        "hidden_states": r(1, 6, 8),
        "encoder_hidden_states": r(1, 5, 32),
        "encoder_attention_mask": one(1, 5).bool(),
        "attention_mask": one(1, 6).bool(),
        "timestep": half(),
    }
    return config, inputs


def _ltx() -> Fixture:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": HEADS,
        "attention_head_dim": 12,
        "cross_attention_dim": 48,
        "num_layers": DEPTH,
        "caption_channels": 16,
    }
    inputs = {
        "hidden_states": r(1, 12, 4),
        "encoder_hidden_states": r(1, 5, 16),
        "timestep": clock(),
        "encoder_attention_mask": one(1, 5).bool(),
        "num_frames": 2,
        "height": 2,
        "width": 3,
    }
    return config, inputs


def _ltx2() -> Fixture:
    config, inputs = _ltx()
    config |= {
        "patch_size": 1,
        "patch_size_t": 1,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 16,
        "rope_double_precision": False,
    }
    more = {
        "audio_hidden_states": r(1, 7, 4),
        "audio_encoder_hidden_states": r(1, 5, 16),
        "timestep": half(),
        "audio_num_frames": 7,
        "fps": 25.0,
    }
    return config, {**inputs, **more}


# ------------------------------------------------------------------ linear attention, convolutional feed-forward


def _sana() -> Fixture:
    config = {
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": DEPTH,
        "attention_head_dim": 4,
        "num_attention_heads": HEADS,
        "num_cross_attention_heads": HEADS,
        "cross_attention_head_dim": 4,
        "cross_attention_dim": 16,
        "caption_channels": 8,
        "sample_size": 8,
    }
    return config, {"hidden_states": r(1, 4, 3, 4), "encoder_hidden_states": r(1, 5, 8), "timestep": clock()}


def _sana_video() -> Fixture:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": HEADS,
        "attention_head_dim": 12,
        "num_layers": DEPTH,
        "num_cross_attention_heads": HEADS,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 48,
        "caption_channels": 16,
        "mlp_ratio": 2.5,
        "sample_size": 8,
        "patch_size": (1, 2, 2),
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    }
    return config, {"hidden_states": r(1, 4, 2, 4, 6), "encoder_hidden_states": r(1, 5, 16), "timestep": clock()}


FIXTURES: dict[str, Callable[[], Fixture]] = {
    "AceStepTransformer1DModel": _ace_step,
    "AllegroTransformer3DModel": _allegro,
    "AnyFlowTransformer3DModel": _anyflow,
    "AnyFlowFARTransformer3DModel": _anyflow_far,
    "AuraFlowTransformer2DModel": _auraflow,
    "BriaTransformer2DModel": _bria,
    "BriaFiboTransformer2DModel": _bria_fibo,
    "ChromaTransformer2DModel": _chroma,
    "ChronoEditTransformer3DModel": _chrono,
    "CogVideoXTransformer3DModel": _cogvideox,
    "CogView3PlusTransformer2DModel": _cogview3,
    "CogView4Transformer2DModel": _cogview,
    "ConsisIDTransformer3DModel": _consisid,
    "CosmosTransformer3DModel": _cosmos,
    "Cosmos3OmniTransformer": _cosmos3,
    "DiTTransformer2DModel": _dit,
    "EasyAnimateTransformer3DModel": _easyanimate,
    "ErnieImageTransformer2DModel": _ernie,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "GlmImageTransformer2DModel": _glm,
    "HeliosTransformer3DModel": _helios,
    "HiDreamImageTransformer2DModel": _hidream,
    "HunyuanDiT2DModel": _hunyuan_dit,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "HunyuanVideo15Transformer3DModel": _hunyuan_video15,
    "HunyuanVideoFramepackTransformer3DModel": _framepack,
    "Ideogram4Transformer2DModel": _ideogram,
    "JoyImageEditTransformer3DModel": _joy,
    "JoyImageEditPlusTransformer3DModel": _joy_plus,
    "Krea2Transformer2DModel": _krea,
    "LatteTransformer3DModel": _latte,
    "LongCatAudioDiTTransformer": _longcat_audio,
    "LongCatImageTransformer2DModel": _longcat_image,
    "LTXVideoTransformer3DModel": _ltx,
    "LTX2VideoTransformer3DModel": _ltx2,
    "LuminaNextDiT2DModel": _lumina_next,
    "Lumina2Transformer2DModel": _lumina2,
    "MiniMaxH3Transformer3DModel": _minimax_h3,
    "MiniMaxMusic3Transformer1DModel": _minimax_music,
    "MochiTransformer3DModel": _mochi,
    "MotifVideoTransformer3DModel": _motif,
    "NucleusMoEImageTransformer2DModel": _nucleus,
    "OmniGenTransformer2DModel": _omnigen,
    "OvisImageTransformer2DModel": _ovis,
    "PixArtTransformer2DModel": _pixart,
    "PriorTransformer": _prior,
    "PRXTransformer2DModel": _prx,
    "QwenImageTransformer2DModel": _qwen,
    "SanaTransformer2DModel": _sana,
    "SanaVideoTransformer3DModel": _sana_video,
    "SD3Transformer2DModel": _sd3,
    "SkyReelsV2Transformer3DModel": _wan_like,
    "StableAudioDiTModel": _stable_audio,
    "StableAudio3DiTModel": _stable_audio3,
    "TransformerTemporalModel": _temporal,
    "WanTransformer3DModel": _wan_like,
    "WanAnimateTransformer3DModel": _wan_animate,
    "WanAnimate2Transformer3DModel": _wan_animate2,
    "WanVACETransformer3DModel": _wan_vace,
    "ZImageTransformer2DModel": _zimage,
}
