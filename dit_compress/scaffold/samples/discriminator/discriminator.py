"""One logit per token, from the stream after the generator's first blocks.

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.model.cut import truncated
from dit_compress.train.discriminators import frozen_depth
from torch import Tensor, nn

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Cond, Denoiser

    from dit_compress.scaffold.samples.discriminator import ExampleOptions


class ExamplePart:
    """Part ``discriminator: {use: example}``."""

    def __init__(self, options: ExampleOptions) -> None:
        self.options = options

    def create(self, generator: Denoiser) -> nn.Module:
        """Make a discriminator over a frozen copy of the generator as it is now."""
        depth = frozen_depth(generator, self.options.frozen_blocks, 0)
        return ExampleDiscriminator(generator, depth, self.options.hidden)


class ExampleDiscriminator(nn.Module):
    """``(latent_BCTHW, sigma_B, cond) → logits [B,S]``: real goes to −1 and below, fake to 1 and above.

    ``trunk`` and ``frozen_blocks`` show the loop where learning begins: R1 is taken there.
    """

    def __init__(self, generator: Denoiser, frozen_blocks: int, hidden: int) -> None:
        super().__init__()
        self.trunk = truncated(generator, frozen_blocks).requires_grad_(requires_grad=False)
        self.frozen_blocks = frozen_blocks
        width = generator.stream_width()
        # Change this: what judges the stream [B,S,D].
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        """Return one logit per token."""
        last = self.frozen_blocks - 1
        _, taken = self.trunk.features(latent_BCTHW, sigma_B, cond, at=[last])
        return self.head(taken[last]).squeeze(-1)
