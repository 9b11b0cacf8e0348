"""The reference DiT: one velocity for a noisy latent, a noise level and a caption.

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens, D width, L text length.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from dit_compress_plugins.model_video_dit.layers import MASKED, Block, RMSNorm, patchify, rope, unpatchify

if TYPE_CHECKING:
    from pathlib import Path

SIGMA_SCALE = 1000.0
"""The sinusoids of the timestep embedding are made for 0…1000."""
SINUSOIDS = 256
FIRST_GATE = 0.1


class VideoDiT(ModelMixin, ConfigMixin):
    """DiT with 3D full self-attention, cross-attention and AdaLN-single; RMSNorm throughout.

    heads, cross_heads, ffn: one count for all blocks, or one per block (a pruned model is an ordinary one).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - diffusers asks for a list

    @register_to_config
    def __init__(
        self,
        layers: int,
        hidden: int,
        heads: int | list[int],
        cross_heads: int | list[int],
        ffn: int | list[int],
        head_width: int = 64,
        channels: int = 128,
        text_width: int = 4096,
        patch: tuple[int, int, int] = (1, 1, 1),
        rope_theta: float = 1e4,
        preconditioned: bool = False,  # noqa: FBT001, FBT002 - a config entry
    ) -> None:
        super().__init__()
        self.patch: tuple[int, int, int] = (patch[0], patch[1], patch[2])
        self.channels, self.head_width, self.rope_theta = channels, head_width, rope_theta
        self.preconditioned = preconditioned
        cells = channels * patch[0] * patch[1] * patch[2]
        self.proj_in = nn.Linear(cells, hidden)
        self.caption_projection = PixArtAlphaTextProjection(text_width, hidden)
        self.time_sinusoids = Timesteps(SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(SINUSOIDS, hidden)
        self.time_table = nn.Linear(hidden, 6 * hidden)
        counts = zip(*(_each(count, layers) for count in (heads, cross_heads, ffn)), strict=True)
        self.transformer_blocks = nn.ModuleList(
            Block(hidden, own, cross, head_width, channels_F) for own, cross, channels_F in counts
        )
        self.norm_out = RMSNorm(hidden, affine=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, hidden))
        self.proj_out = nn.Linear(hidden, cells)
        self.gradient_checkpointing = False
        initialise(self)

    def forward(self, latent_BCTHW: Tensor, sigma_B: Tensor, text_BLD: Tensor, text_mask_BL: Tensor) -> Tensor:
        """Return the velocity ``[B,C,T,H,W]`` at sigma in [0, 1]; the mask is 1 at real text and 0 at padding."""
        t, h, w = (size // step for size, step in zip(latent_BCTHW.shape[2:], self.patch, strict=True))
        x_BSD = self.proj_in(patchify(latent_BCTHW, self.patch))
        tables = rope((t, h, w), self.head_width, self.rope_theta, x_BSD)
        time_BD = self.time_embed(self.time_sinusoids(sigma_B * SIGMA_SCALE).to(latent_BCTHW.dtype))
        table_B6D = self.time_table(nn.functional.silu(time_BD)).unflatten(1, (6, -1))
        text = self.caption_projection(text_BLD)
        bias_B11L = ((1 - text_mask_BL.to(x_BSD.dtype)) * MASKED)[:, None, None, :]
        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BSD = self._gradient_checkpointing_func(block, x_BSD, text, table_B6D, tables, bias_B11L)
            else:
                x_BSD = block(x_BSD, text, table_B6D, tables, bias_B11L)
        shift, scale = (self.scale_shift_table + time_BD[:, None]).chunk(2, dim=1)
        x_BSD = self.proj_out(self.norm_out(x_BSD) * (1 + scale) + shift)
        output = unpatchify(x_BSD, (t, h, w), self.patch)
        return precondition(output, latent_BCTHW, sigma_B.to(output.dtype)) if self.preconditioned else output

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as an ordinary model of its present shape, pruned or not."""
        self.register_to_config(**config_of(self))
        super().save_pretrained(save_directory, **kwargs)


def precondition(output: Tensor, latent: Tensor, sigma_B: Tensor) -> Tensor:
    """Turn a unit-variance target into velocity (EDM's preconditioning for Eq. 1, latents and noise of variance 1).

    ``c_skip·x + c_out·output`` with ``p = (1 - sigma)² + sigma²``, ``c_skip = (2·sigma - 1) / p`` (the best linear
    guess of the velocity from x) and ``c_out = p^-1/2`` (what it misses has this standard deviation).
    """
    sigma = sigma_B.reshape(-1, 1, 1, 1, 1)
    power = (1 - sigma).square() + sigma.square()
    return (2 * sigma - 1) / power * latent + power.rsqrt() * output


def _each(count: int | list[int], layers: int) -> list[int]:
    """Return one entry per block."""
    return list(repeat(count, layers)) if isinstance(count, int) else list(count)


def initialise(module: VideoDiT) -> None:
    """Start every residual branch small and the output near zero, but no gradient at zero.

    Gates of 0.1 learn as fast as those of zero (losses 0.729 and 0.725 after 400 steps of a toy, one seed;
    0.739 from gates of one) and give importance scores a gradient from the first step.
    """
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2 and name.endswith("weight"):
            nn.init.xavier_uniform_(parameter)
    nn.init.normal_(module.time_table.weight, std=0.02)
    nn.init.normal_(module.proj_out.weight, std=0.002)
    blocks: list[Any] = list(module.transformer_blocks)
    for block in blocks:
        nn.init.constant_(block.scale_shift_table[2], FIRST_GATE)
        nn.init.constant_(block.scale_shift_table[5], FIRST_GATE)
        nn.init.normal_(block.attn2.to_out[0].weight, std=0.002)


def config_of(module: VideoDiT) -> dict[str, Any]:
    """Read the config of a module of this shape off its weights: also that of a pruned one."""
    blocks: list[Any] = list(module.transformer_blocks)
    width = module.head_width

    def counts(values: list[int]) -> int | list[int]:
        return values[0] if len(set(values)) == 1 else values

    return {
        "layers": len(blocks),
        "hidden": module.proj_in.out_features,
        "heads": counts([block.attn1.to_q.out_features // width for block in blocks]),
        "cross_heads": counts([block.attn2.to_q.out_features // width for block in blocks]),
        "ffn": counts([block.ff.net[2].in_features for block in blocks]),
        "head_width": width,
        "channels": module.channels,
        "text_width": module.caption_projection.linear_1.in_features,
        "patch": list(module.patch),
        "rope_theta": module.rope_theta,
        "preconditioned": module.preconditioned,
    }
