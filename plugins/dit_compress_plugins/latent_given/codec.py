"""A codec that stands for latents alone: it has their geometry, and nothing to encode or decode.

Shapes: video ``[B,3,F,Y,X]``, latent ``[B,C,T,H,W]`` with T = F, H = Y, W = X.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.model.protocols import Codec
from dit_compress.model.spec import ComponentSpec
from dit_compress.step.protocols import Latent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress_plugins.latent_given import GivenOptions


class GivenCodec(nn.Module, Codec):
    """One cell per pixel and frame; no weights."""

    ratio, decodes = (1, 1, 1), False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def encode(self, video_BCFYX: Tensor) -> Tensor:  # noqa: ARG002 - the contract
        """Raise ``UserError``: there is no VAE."""
        _refuse("encode clips", "Name data that holds latents, such as 'mixture'")

    def decode(self, latent_BCTHW: Tensor) -> Tensor:  # noqa: ARG002 - the contract
        """Raise ``UserError``: there is no VAE."""
        _refuse("show pixels", "Leave out what looks at videos: 'watch', 'generate'")

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """Raise ``UserError``: there is no VAE."""
        return self.decode(latent_BCTHW)


class GivenStep(Latent):
    """Step ``latent: {use: given}``."""

    def __init__(self, options: GivenOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Give the bundle the geometry of the data's latents."""
        return replace(spec, latent=ComponentSpec("latent", "given", self.options.model_dump()))

    def run(self, context: Context) -> Result:
        """Give the bundle its codec, which has no weights."""
        return context.give({"latent": GivenCodec(self.options.channels)}, spec=self.plan(context.spec()))

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make the codec of a saved config."""
        return GivenCodec(**config)


def _refuse(what: str, mend: str) -> NoReturn:
    raise UserError(f"'latent: {{use: given}}' can't {what}: its latents come from the data alone", mend=mend)
