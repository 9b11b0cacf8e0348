"""A 3D CNN that answers whether a value of an attribute (``colour: red``) is seen, and what that says of a caption.

Shapes: B batch, Q questions, A attributes; video ``[B,3,F,Y,X]``.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VALUES = {
    "background": "backgrounds", "colour": "colours", "shape": "shapes",
    "size": "sizes", "direction": "directions", "speed": "speeds",
}  # fmt: skip
"""Where a truth's ``world`` lists the values of each attribute."""
COUNTS = ("1", "2")
SURE = -1e-30
"""The log-probability above which an answer is as sure as its logit can say in float32; it has no gradient then."""

Question = tuple[str, str]


def questions_of(world: Mapping[str, Any]) -> list[Question]:
    """List (attribute, value): each value of the world's vocabulary, and how many objects there are."""
    found = [(name, value) for name, listed in VALUES.items() for value in world[listed]]
    return [*found, *(("count", count) for count in COUNTS)]


def answers_of(truth: Mapping[str, Any], questions: Sequence[Question]) -> list[bool]:
    """Answer each question by a scene's truth."""
    objects = truth["objects"]
    seen = {("background", truth["background"]), ("count", str(len(objects)))}
    seen |= {(name, thing[name]) for thing in objects for name in VALUES if name != "background"}
    return [question in seen for question in questions]


class Network(nn.Module):
    """Four convolutions, what they are on average and at most in the video, and a logit for each question."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width, 4 * width)
        strides = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1))
        self.layers = nn.ModuleList(
            nn.Conv3d(sizes[place], sizes[place + 1], 3, stride, 1) for place, stride in enumerate(strides)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, size) for size in sizes[1:])
        self.head = nn.Linear(2 * sizes[-1], count)

    def forward(self, video_BCFYX: Tensor) -> Tensor:
        """Return the logits of "it is seen", ``[B,Q]``."""
        x = video_BCFYX
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = silu(norm(layer(x)))
        return self.head(torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], 1))


class Critic(nn.Module):
    """The reward. An attribute is right where all of its questions are answered as the caption's scene does.

    truths: of the scenes that captions describe, by caption.
    """

    def __init__(
        self, network: Network, questions: Sequence[Question], truths: Mapping[str, Mapping[str, Any]]
    ) -> None:
        super().__init__()
        self.network, self.questions, self.truths = network, list(questions), truths
        self.aspects = tuple(name for name, _ in groupby(name for name, _ in questions))

    def forward(self, video_BCFYX: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the logit of each attribute, ``[B,A]``."""
        return self.judged(self.network(video_BCFYX), self.expected(captions).to(video_BCFYX.device))

    def expected(self, captions: Sequence[str]) -> Tensor:
        """Return what each caption's scene answers, ``[B,Q]`` of 0 and 1; raise a UserError for captions of no clip."""
        if unknown := [caption for caption in captions if caption not in self.truths]:
            raise UserError(
                f"the critic knows no scene of the caption {unknown[0]!r}", mend="Name captions of the recipe's data"
            )
        return torch.tensor([answers_of(self.truths[caption], self.questions) for caption in captions]).float()

    def judged(self, logits_BQ: Tensor, expected_BQ: Tensor) -> Tensor:
        """Return ``log(p / (1 - p))`` of each attribute, p the product of the probabilities of its right answers."""
        right_BQ = logsigmoid(logits_BQ.float() * (2 * expected_BQ - 1))
        columns = []
        for aspect in self.aspects:
            mine = [place for place, (name, _) in enumerate(self.questions) if name == aspect]
            log_p = right_BQ[:, mine].sum(1).clamp_max(SURE)
            columns.append(log_p - torch.log(-torch.expm1(log_p)))
        return torch.stack(columns, 1)
