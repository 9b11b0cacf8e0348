"""The networks of a bundle, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.protocols import Codec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context


@dataclass(frozen=True)
class Loaded:
    """The networks of a bundle, each read from disk once, for inference."""

    text: Captions
    denoiser: Denoiser
    codec: Codec

    @classmethod
    def of(cls, context: Context) -> Loaded:
        """Load the components of the step's input."""
        return cls(context.text().eval(), context.input.denoiser().eval(), context.input.codec().eval())
