"""Clips made worse, with what is seen of them then. Shapes: one video ``[3,F,Y,X]``; answers by question, 0 or 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import avg_pool3d, interpolate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dit_compress_plugins.reward_shapes.critic import Question

OF_OBJECTS = ("colour", "shape", "size", "direction", "speed", "count")
HIDES = {
    "still": ("direction", "speed"),
    "grey": ("colour",),
    "coarse": ("shape",),
    "empty": OF_OBJECTS,
    "faint": OF_OBJECTS,
    "noisy": ("background", *OF_OBJECTS),
}
"""Attributes of which nothing is seen any more."""
KINDS = (*HIDES, "backwards")
COARSE, FAINT, NOISE = 12, 0.1, 1.0
"""Pixels averaged to one; what is left of the difference to the background; standard deviation of noise."""


def damaged(
    video: Tensor,
    answers: Sequence[bool],
    kind: str,
    questions: Sequence[Question],
    opposite: Mapping[str, str],
    seed: int,
) -> tuple[Tensor, list[bool]]:
    """Damage a video in one way; opposite: of each direction."""
    if kind == "backwards":
        seen = {question for question, yes in zip(questions, answers, strict=True) if yes}
        turned = [(name, opposite[value]) if name == "direction" else (name, value) for name, value in questions]
        return video.flip(1), [question in seen for question in turned]
    hidden = HIDES[kind]
    return _look(video, kind, seed), [
        yes and name not in hidden for (name, _), yes in zip(questions, answers, strict=True)
    ]


def _look(video: Tensor, kind: str, seed: int) -> Tensor:
    if kind == "still":
        return video[:, :1].expand_as(video)
    if kind == "grey":
        return video.mean(0, keepdim=True).expand_as(video)
    if kind == "coarse":
        small = avg_pool3d(video, (1, COARSE, COARSE), ceil_mode=True, count_include_pad=False)
        return interpolate(small[None], size=video.shape[1:], mode="nearest")[0]
    if kind == "noisy":
        return video + NOISE * torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))
    bare = video.flatten(1).median(1).values.reshape(3, 1, 1, 1).expand_as(video)  # most pixels are background
    return bare if kind == "empty" else bare + FAINT * (video - bare)
