"""Logits per token from the generator's own features (Figure 2 of the paper).

The denoiser contract makes it one class for every DiT: a truncated copy keeps the first K + n blocks,
of which the last n are learnable; whatever the model does before its blocks stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from dit_compress.model.cut import truncated
from dit_compress.train.discriminators import frozen_depth

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress_plugins.discriminator_dit_block import DitBlockOptions


class DitBlockDiscriminatorPart:
    """Part ``discriminator: {use: dit_block}``."""

    def __init__(self, options: DitBlockOptions) -> None:
        self.options = options

    def create(self, generator: Denoiser) -> nn.Module:
        """Make a discriminator from a frozen copy of the generator as it is now."""
        frozen = frozen_depth(generator, self.options.frozen_blocks, self.options.learnable_blocks)
        return DitBlockDiscriminator(generator, frozen, self.options.learnable_blocks, self.options.hidden)


class DitBlockDiscriminator(nn.Module):
    """``(latent_BCTHW, sigma_B, cond) → logits [B,S]``."""

    def __init__(self, generator: Denoiser, frozen: int, learnable: int, hidden: int | None) -> None:
        super().__init__()
        self.trunk = truncated(generator, frozen + learnable)
        self.trunk.requires_grad_(requires_grad=False)
        stack = self.trunk.structure().main
        for index in range(frozen, frozen + learnable):
            self.trunk.module.get_submodule(stack.block(index)).requires_grad_()
        self.frozen_blocks, self.tap = frozen, frozen + learnable - 1
        width = generator.stream_width()
        hidden = hidden or max(8, width // 4)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        """Return one logit per token."""
        _, taken = self.trunk.features(latent_BCTHW, sigma_B, cond, at=[self.tap])
        return self.head(taken[self.tap]).squeeze(-1)
