"""Data: a folder of latents that were encoded elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.plugin.options import BucketOptions


class LatentsOptions(BucketOptions):
    """The shards, and what they were encoded from.

    path: a folder that ``dit-compress encode`` wrote, or a run's ``cache/latents-…``.
    frames, size, fps: of the clips that were encoded; size is (Y, X). sizes: of clips of several sizes.
    test_fraction: share of the samples that go to the test split, by the hash of ``split_by``.
    split_by: ``caption`` keeps samples of equal captions on one side; ``file`` goes by the clip's name.
    """

    path: Path
    test_fraction: float = Field(0.05, ge=0, lt=1)
    split_by: Literal["caption", "file"] = "caption"

    @property
    def encoded(self) -> bool:
        """True."""
        return True


@hookimpl
def data() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="latents",
        options=LatentsOptions,
        load="dit_compress_plugins.data_latents.data:Latents",
        summary="latents in shards, encoded elsewhere by the same VAE",
    )
