"""A pipeline of each public model, a few hundred thousand weights: every class, ratio and rule is the model's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from dit_compress.model.twins import image, text

if TYPE_CHECKING:
    from collections.abc import Callable

HEADS, DEPTH = 4, 3


def wan(
    *, experts: int = 1, boundary: float | None = None, ti2v: bool = False, i2v: bool = False, sees: bool = False
) -> Any:
    """Make Wan: 2.1; 2.2 with two experts; 2.2 TI2V, whose VAE has 4x16x16; from an image, 2.1 also with CLIP's."""
    encoder, tokenizer = text.umt5()
    channels = 48 if ti2v else 16
    vae = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * channels, latents_std=[1.0] * channels, **(_PATCHED if ti2v else {}),
    )  # fmt: skip
    config = {
        "num_attention_heads": HEADS, "attention_head_dim": 12, "in_channels": 2 * channels + 4 if i2v else channels,
        "out_channels": channels, "text_dim": text.WIDTH, "freq_dim": 32, "ffn_dim": 96, "num_layers": DEPTH,
        "rope_max_seq_len": 64, **({"image_dim": image.WIDTH, "added_kv_proj_dim": HEADS * 12} if sees else {}),
    }  # fmt: skip
    models = [diffusers.WanTransformer3DModel(**config) for _ in range(experts)]
    given = {
        "tokenizer": tokenizer, "text_encoder": encoder, "vae": vae, "transformer": models[0],
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
        "boundary_ratio": boundary, "expand_timesteps": ti2v,
    }  # fmt: skip
    if experts > 1:
        given["transformer_2"] = models[1]
    if i2v:
        clip, processor = image.clip() if sees else (None, None)
        return diffusers.WanImageToVideoPipeline(**given, image_encoder=clip, image_processor=processor)
    return diffusers.WanPipeline(**given)


_PATCHED = {
    "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 8,
    "scale_factor_spatial": 16,
}  # fmt: skip


def ltx() -> Any:
    """Make LTX-Video: 8x32x32."""
    encoder, tokenizer = text.t5()
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=16, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=HEADS, attention_head_dim=12,
        cross_attention_dim=HEADS * 12, num_layers=DEPTH, caption_channels=text.WIDTH,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip
    return diffusers.LTXPipeline(scheduler, vae, encoder, tokenizer, model)


def ltx2() -> Any:
    """Make LTX-2: 8x32x32 with a tower for sound, and connectors between Gemma and both towers."""
    encoder, tokenizer = text.gemma3()
    side = {"num_attention_heads": HEADS, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": None}
    connectors = LTX2TextConnectors(
        caption_channels=text.WIDTH, text_proj_in_factor=encoder.config.text_config.num_hidden_layers + 1,
        connector_rope_base_seq_len=32, rope_double_precision=False, rope_type="split",
        **{f"{tower}_connector_{name}": value for tower in ("video", "audio") for name, value in side.items()},
    )  # fmt: skip
    model = diffusers.LTX2VideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=HEADS, attention_head_dim=12,
        cross_attention_dim=HEADS * 12, audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=HEADS,
        audio_attention_head_dim=8, audio_cross_attention_dim=HEADS * 8, num_layers=DEPTH, caption_channels=text.WIDTH,
        rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip
    return diffusers.LTX2Pipeline(
        scheduler=scheduler, text_encoder=encoder, tokenizer=tokenizer, connectors=connectors, transformer=model,
        **_ltx2_codecs(),
    )  # fmt: skip


def _ltx2_codecs() -> dict[str, Any]:
    """Return what stands between latents and pixels, and between latents and sound."""
    audio = diffusers.AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=16
    )
    return {
        "vae": diffusers.AutoencoderKLLTX2Video(
            latent_channels=16, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 16, 32),
            layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1),
            spatial_compression_ratio=32, temporal_compression_ratio=8,
        ),
        "audio_vae": audio,
        "vocoder": LTX2Vocoder(
            in_channels=audio.config.output_channels * audio.config.mel_bins, hidden_channels=32,
            upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2], resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
    }  # fmt: skip


def cogvideox(*, rotary: bool) -> Any:
    """Make CogVideoX: 2b without rotary embeddings, 5b with them."""
    encoder, tokenizer = text.t5()
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=16, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=16, in_channels=16, out_channels=16, time_embed_dim=16,
        text_embed_dim=text.WIDTH, num_layers=DEPTH, sample_width=8, sample_height=8, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=226, use_rotary_positional_embeddings=rotary,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, snr_shift_scale=1.0 if rotary else 3.0, timestep_spacing="trailing",
    )  # fmt: skip
    return diffusers.CogVideoXPipeline(tokenizer, encoder, vae, model, scheduler)


def hunyuan15(*, i2v: bool = False) -> Any:
    """Make HunyuanVideo 1.5: 4x16x16, two text encoders, a guider; from an image with SigLIP's embeddings."""
    encoder, tokenizer = text.qwen()
    glyphs, letters = text.byt5()
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=32, block_out_channels=(16, 16, 16, 16, 64), layers_per_block=1, spatial_compression_ratio=16,
        temporal_compression_ratio=4, downsample_match_channel=False, upsample_match_channel=False,
    )  # fmt: skip
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=65, out_channels=32, num_attention_heads=HEADS, attention_head_dim=8, num_layers=DEPTH,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=text.WIDTH,
        text_embed_2_dim=text.WIDTH, image_embed_dim=image.WIDTH, rope_axes_dim=(2, 2, 4),
        **({"target_size": 64, "task_type": "i2v"} if i2v else {"target_size": 640, "task_type": "t2v"}),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    guider = ClassifierFreeGuidance(guidance_scale=6.0)
    given = (encoder, tokenizer, model, vae, scheduler, glyphs, letters, guider)
    if i2v:
        return diffusers.HunyuanVideo15ImageToVideoPipeline(*given, *image.siglip())
    return diffusers.HunyuanVideo15Pipeline(*given)


def sana() -> Any:
    """Make Sana-Video on the VAE of Wan."""
    encoder, tokenizer = text.gemma2()
    vae = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    model = diffusers.SanaVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=HEADS, attention_head_dim=12, num_layers=DEPTH,
        num_cross_attention_heads=HEADS, cross_attention_head_dim=12, cross_attention_dim=HEADS * 12,
        caption_channels=text.WIDTH, mlp_ratio=2.5, sample_size=8, patch_size=(1, 2, 2), rope_max_seq_len=64,
        qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=7.0
    )
    return diffusers.SanaVideoPipeline(tokenizer, encoder, vae, model, scheduler)


def _image_vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), latent_channels=16, norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06,
    )  # fmt: skip


def flux() -> Any:
    """Make FLUX.1-dev: guidance embedded, pooled CLIP beside T5."""
    pooled, words = text.clip(projected=False)
    encoder, tokenizer = text.t5()
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=HEADS, joint_attention_dim=text.WIDTH, pooled_projection_dim=text.WIDTH,
        guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
        max_image_seq_len=4096,
    )  # fmt: skip
    return diffusers.FluxPipeline(scheduler, _image_vae(), pooled, words, encoder, tokenizer, model)


def sd35() -> Any:
    """Make Stable Diffusion 3.5 medium: two CLIPs and T5, two attentions in the first blocks."""
    first, words = text.clip(projected=True)
    second, more = text.clip(projected=True)
    encoder, tokenizer = text.t5(width=2 * text.WIDTH)  # as wide as both CLIPs together
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=DEPTH, attention_head_dim=16,
        num_attention_heads=HEADS, caption_projection_dim=HEADS * 16, joint_attention_dim=2 * text.WIDTH,
        pooled_projection_dim=2 * text.WIDTH, pos_embed_max_size=32, dual_attention_layers=(0, 1), qk_norm="rms_norm",
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(
        model, scheduler, _image_vae(), first, words, second, more, encoder, tokenizer
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "Wan2.1-T2V-1.3B": wan,
    "Wan2.2-T2V-A14B": lambda: wan(experts=2, boundary=0.875),
    "Wan2.2-TI2V-5B": lambda: wan(ti2v=True),
    "Wan2.1-I2V-14B": lambda: wan(i2v=True, sees=True),
    "LTX-Video": ltx,
    "LTX-2": ltx2,
    "CogVideoX-2b": lambda: cogvideox(rotary=False),
    "CogVideoX-5b": lambda: cogvideox(rotary=True),
    "HunyuanVideo-1.5": hunyuan15,
    "HunyuanVideo-1.5-I2V": lambda: hunyuan15(i2v=True),
    "SANA-Video_2B": sana,
    "FLUX.1-dev": flux,
    "stable-diffusion-3.5-medium": sd35,
}
