"""The mixture that clips of a closed-form world were drawn from, as their truth states it.

Shapes: N clips, G captions of the world, M modes of each, D numbers of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.plugin.defaults import MIXTURE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dit_compress.data.clips import Clip


@dataclass(frozen=True)
class Mixture:
    """Modes are equally likely, each ``N(mean, spread²)`` in all directions. float64.

    means_GMD: of all captions of the world. captions_N: which of them each clip has. names: of the clips' captions.
    """

    means_GMD: Tensor
    captions_N: Tensor
    spread: float
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, clips: Sequence[Clip]) -> Mixture:
        """Read what some clips state; UserError where they are of another world."""
        known = [clip.truth for clip in clips if clip.truth is not None and MIXTURE in clip.truth]
        if not known or len(known) < len(clips):
            raise UserError(
                "the mixture that this data was drawn from is not known",
                where=str(clips[0].path) if clips else "",
                mend=f"Use 'data: {{use: {MIXTURE}}}'",
            )
        mixture: Mapping[str, Any] = known[0][MIXTURE]
        means = torch.tensor(mixture["means"], dtype=torch.float64).flatten(2)
        captions = torch.tensor([truth["caption"] for truth in known])
        return cls(means, captions, mixture["spread"], tuple(clip.caption for clip in clips))

    @property
    def own_NMD(self) -> Tensor:
        """The modes of each clip's caption."""
        return self.means_GMD[self.captions_N]
