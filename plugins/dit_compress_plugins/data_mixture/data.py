"""The mixture as a source of captioned latents; nothing of it is on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.data.clips import EncodedClip, Split
from dit_compress.data.source import Data
from dit_compress_plugins.data_mixture.world import captions, choices, latents, means

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from dit_compress_plugins.data_mixture import MixtureOptions


class MixtureData(Data):
    """Draws captions and latents as they are asked for."""

    def __init__(self, options: MixtureOptions) -> None:
        """Keep the options; nothing is drawn yet."""
        self.options = options

    def prepare(self, cache: Path) -> None:
        """Write nothing: everything is drawn again within a second."""

    def manifest(self, cache: Path) -> list[dict[str, Any]]:  # noqa: ARG002 - nothing is kept
        """Return the options, of which every sample is a function."""
        return [self.options.model_dump(mode="json")]

    def clips(self, cache: Path, split: Split) -> list[EncodedClip]:
        """Return the samples of one split.

        Their ``truth``: ``caption``, its place among all; ``mixture``, the same for all: ``means``, by caption and
        mode, and ``spread``.
        """
        options, words = self.options, captions(self.options)
        mixture = {
            "means": means(options).reshape(-1, options.modes, *options.shape).tolist(),
            "spread": options.spread,
        }
        return [
            EncodedClip(
                path=cache / f"{split}-{place:06d}",
                caption=words[caption],
                truth={"mixture": mixture, "caption": caption},
                frames=options.frames,
                size=options.size,
                place=place,
            )
            for place, caption in enumerate(choices(options, split)[0].tolist())
        ]

    def encoded(self, cache: Path, split: Split, vae: str) -> np.ndarray:  # noqa: ARG002 - no VAE made them
        """Return the latents of one split."""
        return latents(self.options, split)
