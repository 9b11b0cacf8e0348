"""The reference DiT behind the engine's convention. It speaks it already: nothing is converted.

Shapes: B batch, C channels, T H W latent frames, height, width, L text length, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.model.denoiser import Cond, Denoiser
from dit_compress.model.protocols import Model
from dit_compress_plugins.model_video_dit.layers import rope
from dit_compress_plugins.model_video_dit.model import VideoDiT, config_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from dit_compress_plugins.model_video_dit import VideoDiTOptions


class VideoDiTDenoiser(Denoiser):
    """``cond`` holds ``embedding [B,L,D]`` and ``mask [B,L]``, as text encoders give them."""

    module: VideoDiT

    def call(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the four tensors of ``VideoDiT.forward``."""
        return (latent_BCTHW, sigma_B, cond["embedding"], cond["mask"]), {}

    def velocity(self, output: Any, latent_BCTHW: Tensor, sigma_B: Tensor) -> Tensor:  # noqa: ARG002 - the contract
        """Return the output: it is the velocity."""
        return output

    def example(
        self, batch: int, size_THW: tuple[int, int, int], *, text_length: int = 8
    ) -> tuple[Tensor, Tensor, Cond]:
        """Draw random inputs; the second half of every text is padding."""
        weight = self.module.proj_in.weight
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        mask = (torch.arange(text_length, device=weight.device) < (text_length + 1) // 2).to(weight.dtype)
        embedding = torch.randn(batch, text_length, self.module.caption_projection.linear_1.in_features, **like)
        tensors = {"embedding": embedding * mask[:, None], "mask": mask.expand(batch, -1)}
        first = (torch.arange(text_length, device=weight.device) == 0).to(weight.dtype)[None]
        null = {"embedding": torch.zeros_like(embedding[:1]), "mask": first}
        return torch.randn(batch, self.channels, *size_THW, **like), torch.rand(batch, **like), Cond(tensors, null)

    def rope_tables(self, size_THW: tuple[int, int, int]) -> dict[str, Tensor]:
        """Return ``cos`` and ``sin [S,K/2]`` in float32; tokens count along T, then H, then W, the last fastest."""
        t, h, w = (size // step for size, step in zip(size_THW, self.module.patch, strict=True))
        like = torch.empty(0, device=self.module.proj_in.weight.device)
        cos, sin = rope((t, h, w), self.module.head_width, self.module.rope_theta, like)
        return {"cos": cos, "sin": sin}

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return self.module.channels

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent cells per token along T, H, W."""
        return self.module.patch


class VideoDiTModel(Model):
    """The part ``model: {use: video_dit}``."""

    def __init__(self, options: VideoDiTOptions) -> None:
        self.options = options

    def create(self) -> nn.Module:
        """Make a module of random weights."""
        return VideoDiT(**self.options.config())

    @staticmethod
    def config_of(module: nn.Module) -> dict[str, Any]:
        """Return the config of a module of this shape; a pruned module gives that of an ordinary small one."""
        assert isinstance(module, VideoDiT)
        return config_of(module)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make a module without its weights; call it on the meta device."""
        return VideoDiT(**config)

    @staticmethod
    def denoiser(module: nn.Module) -> VideoDiTDenoiser:
        """Put the module behind the engine's convention."""
        return VideoDiTDenoiser(module)
