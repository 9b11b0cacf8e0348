"""What reads the pixels as a part of kind ``reward``: the share of each attribute that is right, as a logit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.data.samples import to_pixels
from dit_compress_plugins.evaluate_shapes.scores import ATTRIBUTES, score
from dit_compress_plugins.evaluate_shapes.step import truth_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_shapes import ReaderOptions

NEVER = 1e-7
"""The least probability that a logit stands for."""


class Reader(nn.Module):
    """Reads videos on the CPU. truths: of the scenes that captions describe, by caption."""

    aspects = ATTRIBUTES

    def __init__(self, truths: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self.truths = truths

    @torch.no_grad()
    def forward(self, video_BCFYX: Tensor, captions: Sequence[str]) -> Tensor:
        """Return logits ``[B,A]``: their sigmoids are the shares; a caption of no clip raises a UserError."""
        if unknown := [caption for caption in captions if caption not in self.truths]:
            raise UserError(
                f"no clip has the caption {unknown[0]!r}, by which a video could be judged",
                mend="Judge videos of captions of the recipe's data",
            )
        found = [
            score(video, self.truths[caption]) for video, caption in zip(to_pixels(video_BCFYX), captions, strict=True)
        ]
        shares = torch.tensor([[one[name] for name in ATTRIBUTES] for one in found], dtype=torch.float64)
        return torch.logit(shares, eps=NEVER).float().to(video_BCFYX.device)


class ReaderPart:
    """Part ``reward: {use: reader}``: a judge."""

    differentiable = False

    def __init__(self, options: ReaderOptions) -> None:
        self.options = options

    def create(self, context: Context) -> Reader:
        """Make it; the clips of both splits say what their captions mean."""
        clips = [*context.clips("train"), *context.clips("test")]
        return Reader({clip.caption: truth_of(clip) for clip in clips})
