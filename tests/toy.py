"""Small real things that several tests need: a caption encoder, a bundle on disk, a context, a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.testing.models import CAPTIONS, SIZE, tiny_denoiser
from dit_compress.testing.models import tiny_batch as batch
from dit_compress.testing.models import tiny_text as words
from dit_compress.testing.steps import tiny_context

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.step.context import Context

__all__ = ["CAPTIONS", "SIZE", "Colours", "Pixels", "batch", "context_in", "part", "tiny_bundle", "words"]


class Pixels(torch.nn.Module):
    """A decoder of one pixel a cell: three fixed mixtures of the channels."""

    ratio, channels = (1, 1, 1), 8

    def __init__(self) -> None:
        super().__init__()
        mixture = torch.linspace(-1, 1, 24).reshape(3, 8).sin()
        self.mixture = torch.nn.Parameter(mixture)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bcthw,pc->bpthw", latent, self.mixture)

    decode = forward


class Colours(torch.nn.Module):
    """A reward: is it bright, and is it red rather than blue? Captions of odd length want the opposite."""

    aspects = ("bright", "warm")

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, video: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        means = video.mean((2, 3, 4))
        wanted = torch.tensor([1.0 - 2 * (len(caption) % 2) for caption in captions]).to(video.device)
        return self.scale * wanted[:, None] * torch.stack([means.mean(1), means[:, 0] - means[:, 2]], 1)


def part(kind: str, name: str, **options: Any) -> Any:
    """A built part of the installed plugins."""
    return make_part(kind, {"use": name, **options}, installed()).build()


def tiny_bundle(
    path: Path,
    *,
    seed: int = 0,
    lineage: Sequence[dict[str, Any]] = (),
    flow: Flow | None = None,
    denoiser: Denoiser | None = None,
    log: tuple[dict[str, Any], ...] = (),
) -> Bundle:
    """A bundle of the tiny reference DiT and a caption encoder."""
    denoiser = denoiser or tiny_denoiser("video_dit", seed)
    encoder = words().encoder
    whole = tiny_denoiser("video_dit", seed).module
    specs = {
        "denoiser": ComponentSpec("model", "video_dit", part("model", "video_dit").config_of(whole), log),
        "text": ComponentSpec("text", "words", part("text", "words").config_of(encoder)),
    }
    spec = Spec(flow=flow or Flow(), **specs)
    return write_bundle(path, spec, {"denoiser": denoiser.module, "text": encoder}, base=None, lineage=lineage)


def context_in(folder: Path, **bundles: Bundle) -> Context:
    """A step's context over some bundles."""
    return replace(tiny_context(folder, **bundles), parts={}, record={"kind": "distill"}, video=None)
