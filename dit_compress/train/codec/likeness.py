"""Distillation of a larger VAE's decoder: the student's streams follow the teacher's on the same clips.

Both decode their own latent of a clip. Every stage of the student's decoder is paired with the teacher's stage
nearest to it in resolution; a linear map per pair brings the student's channels to the teacher's, and the loss is
one minus the cosine per place (Turbo-VAED distils decoder features through projections likewise). The maps are
trained along and not kept.

Shapes: stream ``[B,D,T,H,W]``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dit_compress.core.errors import UserError
from dit_compress.train.losses import cosine_distance

if TYPE_CHECKING:
    from dit_compress.model.codec.causal import CausalCodec


class Likeness:
    """The distance between a student's streams and a frozen teacher's.

    Args:
        student: the VAE that is trained.
        teacher: a codec with ``features(latent) -> [stream, …]``.
        seed: of the maps' first weights.
    """

    def __init__(self, student: CausalCodec, teacher: nn.Module, seed: int) -> None:
        self.teacher: Any = teacher.eval().requires_grad_(requires_grad=False)
        with torch.no_grad():
            video = torch.zeros(1, 3, *_smallest(student, self.teacher))
            ours, theirs = student.features(student.encode(video)), self._of_teacher(video)
        self.pairs = [(index, _nearest(stream, theirs)) for index, stream in enumerate(ours)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maps = [nn.Linear(ours[own].shape[1], theirs[other].shape[1]) for own, other in self.pairs]
        self.aligner = nn.ModuleList(maps)

    def __call__(self, features: list[Tensor], video_BCFYX: Tensor) -> Tensor:
        """Return the mean over pairs of the distance of the student's ``features`` of a video to the teacher's."""
        with torch.no_grad():
            theirs = self._of_teacher(video_BCFYX)
        terms = []
        for (own, other), align in zip(self.pairs, self.aligner, strict=True):
            student, teacher = _alike(features[own], theirs[other])
            terms.append(cosine_distance(align(_places(student)), _places(teacher)))
        return torch.stack(terms).mean()

    def _of_teacher(self, video_BCFYX: Tensor) -> list[Tensor]:
        found = self.teacher.features(self.teacher.encode(video_BCFYX))
        if found is None:
            raise UserError(
                f"the teacher's VAE, a {type(self.teacher).__name__}, does not show its decoder's features",
                mend="Take a teacher whose VAE has 'features', as those that come with dit-compress",
            )
        return found


def _smallest(student: CausalCodec, teacher: Any) -> tuple[int, int, int]:
    """Return frames, height and width of the smallest video with a second latent frame that both take."""
    time, height, width = (math.lcm(a, b) for a, b in zip(student.ratio, teacher.ratio, strict=True))
    return 1 + time, height, width


def _nearest(stream: Tensor, others: list[Tensor]) -> int:
    """Choose the stream of nearest width in cells, the later of two alike."""
    return min(range(len(others)), key=lambda i: (abs(math.log(others[i].shape[-1] / stream.shape[-1])), -i))


def _alike(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Average both to the coarser of the two along each axis."""
    frames, height, width = map(min, one.shape[2:], other.shape[2:])
    size = (frames, height, width)
    pooled = [each if each.shape[2:] == size else functional.adaptive_avg_pool3d(each, size) for each in (one, other)]
    return pooled[0], pooled[1]


def _places(stream_BDTHW: Tensor) -> Tensor:
    """Turn ``[B,D,T,H,W]`` into ``[B, T·H·W, D]``."""
    return stream_BDTHW.flatten(2).transpose(1, 2)
