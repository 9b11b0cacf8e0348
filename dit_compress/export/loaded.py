"""The networks of a bundle, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Fixed, Flow
    from dit_compress.model.protocols import Codec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context


@dataclass(frozen=True)
class Loaded:
    """The networks of a bundle, each read from disk once, for inference, and how they sample (``Flow.fixed``)."""

    text: Captions
    denoiser: Denoiser
    codec: Codec
    flow: Flow
    fixed: Fixed | None

    @classmethod
    def of(cls, context: Context, flow: Flow | None = None) -> Loaded:
        """Load the components of the step's input; UserError where no file holds what the sampler does."""
        flow, denoiser = flow or context.input.flow, context.input.denoiser().eval()
        return cls(context.text().eval(), denoiser, context.input.codec().eval(), flow, flow.fixed(lambda: denoiser))
