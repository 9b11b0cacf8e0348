"""The kind ``reward``: its contract, and the trial that a reward passes before anything is trained.

Shapes: B batch, A aspects; video ``[B,3,F,Y,X]`` in [-1, 1], as a decoder gives it: values beyond happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import logsigmoid

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from dit_compress.plugin.options import Part
    from dit_compress.step.context import Context


class Reward(Protocol):
    """Answers questions about videos. An ``nn.Module`` besides: it is frozen, and moved where the training is."""

    aspects: tuple[str, ...]
    """The questions, by name."""

    def __call__(self, video_BCFYX: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the logit of a "yes" to each question, ``[B,A]``: does the video show what its caption says?

        Differentiable by the pixels, which are not to be clipped: where they are, no gradient is left. A judge's
        need not be. Each row depends on its own video and caption alone.
        """


class RewardPart(Protocol):
    """Makes a reward.

    differentiable: False where no answer ever has a gradient; such a reward judges, and is refused as a critic.
    """

    differentiable: bool = True

    def check(self) -> None:
        """Raise a UserError where a file that it needs is not there; called when the step is planned."""

    def create(self, context: Context) -> nn.Module:
        """Make it; it follows :class:`Reward`. Every process calls this; the context has the recipe's clips."""


def need_part(slot: str, part: Part) -> None:
    """Raise a UserError where a part of the step can't work, as far as it can tell before anything has run."""
    made = part.build()
    if slot == "reward" and not getattr(made, "differentiable", True):
        raise UserError(
            f"the reward {part.name!r} has no gradient to the pixels", mend="Make it the 'judge', and name another"
        )
    if check := getattr(made, "check", None):
        check()


def log_yes(logits_BA: Tensor) -> Tensor:
    """Return the mean log-probability of a "yes" to each question, ``[A]``."""
    return logsigmoid(logits_BA.float()).mean(0)


def share_of_yes(logits_BA: Tensor) -> Tensor:
    """Return the mean probability of a "yes" to each question, ``[A]``."""
    return torch.sigmoid(logits_BA.float()).mean(0)


def need_answers(name: str, reward: Reward, video: Tensor, captions: Sequence[str]) -> Tensor:
    """Return the logits of some videos; raise a UserError that names the reward where they break its contract."""
    logits, expected = reward(video, captions), (len(captions), len(reward.aspects))
    if tuple(logits.shape) != expected:
        raise UserError(
            f"the reward {name!r} gives {list(logits.shape)} for {expected[0]} videos and {expected[1]} aspects",
            mend=f"Return logits {list(expected)}: one for each video and aspect",
        )
    for place, aspect in enumerate(reward.aspects):
        if not torch.isfinite(logits[:, place]).all():
            raise UserError(
                f"the reward {name!r} gives {_first_bad(logits[:, place])} for the aspect {aspect!r} of real clips",
                mend="Mend the reward, or name another",
            )
    return logits


def need_gradients(name: str, reward: Reward, video: Tensor, captions: Sequence[str]) -> None:
    """Raise a UserError that names reward and aspect where an answer has no finite gradient to the pixels."""
    pixels = video.detach().requires_grad_()
    logits = need_answers(name, reward, pixels, captions)
    for place, aspect in enumerate(reward.aspects):
        found = None
        if logits.requires_grad:
            (found,) = torch.autograd.grad(logits[:, place].sum(), pixels, retain_graph=True, allow_unused=True)
        if found is None or not found.any():
            raise UserError(
                f"the reward {name!r} has no gradient from the aspect {aspect!r} to the pixels",
                mend="Compute it without rounding, clipping or no_grad; what has no gradient can be a 'judge'",
            )
        if not torch.isfinite(found).all():
            raise UserError(
                f"the gradient of the reward {name!r} from the aspect {aspect!r} to the pixels is {_first_bad(found)}",
                mend="Mend the reward, or name another",
            )


def _first_bad(values: Tensor) -> float:
    return float(values.detach()[~torch.isfinite(values)][0])
