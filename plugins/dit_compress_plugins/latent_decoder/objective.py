"""The training of a decoder: one role that moves, L1 to the clip and to what the original decoder makes of it.

Shapes: video ``[B,3,F,Y,X]`` in [-1, 1], latent ``[B,C,T,H,W]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dit_compress.train.objective import Batch, Phase, Role

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dit_compress_plugins.latent_decoder import DecoderOptions


class DecoderObjective:
    """A student's decoder after a teacher's.

    Args:
        student: the module that is trained: latent → video.
        teacher: the original codec: its encoder makes the latents, its decoder the target.
        only: names of the student's tensors that move; all that require grad where it is empty.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, options: DecoderOptions, only: tuple[str, ...] = ()
    ) -> None:
        self.student, self.teacher, self.options = student, teacher.eval().requires_grad_(requires_grad=False), options
        self.roles = {
            "decoder": Role(
                student,
                lr=options.lr,
                only=only,
                betas=options.betas,
                weight_decay=options.weight_decay,
                decay_norms=options.decay_norms,
                ema=options.ema or None,
                clip=options.clip,
            ),
            "teacher": Role(teacher),
        }
        self.phases = (Phase("decode", ("decoder",), shown=("to_pixels", "to_teacher")),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - there is one phase
        """Return the weighted sum of the two distances, and both for the log."""
        video, weights = batch.x0, self.options.targets
        latent, target = self.taught(video, decodes=bool(weights.teacher) or batch.held_out)
        decoded = self.student(latent).float()
        pixel = functional.l1_loss(decoded, video)
        teacher = pixel.new_zeros(()) if target is None else functional.l1_loss(decoded, target)
        return {
            "loss": weights.pixel * pixel + weights.teacher * teacher,
            "to_pixels": pixel.detach(),
            "to_teacher": teacher.detach(),
        }

    @torch.no_grad()
    def taught(self, video_BCFYX: Tensor, *, decodes: bool) -> tuple[Tensor, Tensor | None]:
        """Return the teacher's latent of a video, and what its decoder makes of it."""
        teacher: Any = self.teacher
        latent = teacher.encode(video_BCFYX)
        return latent, teacher.decode(latent).float() if decodes else None
