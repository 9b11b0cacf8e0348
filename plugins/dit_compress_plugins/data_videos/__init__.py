"""Data: videos, images and folders of frames; by ``captions.jsonl``, a table, shards, or as DAVIS lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.plugin.options import BucketOptions


class VideosOptions(BucketOptions):
    """The clips, and what is taken of each.

    path: a folder with its ``captions.jsonl``, of folders of frames, or of shards; a ``.csv``, ``.parquet``, ``.tar``.
    frames, size, fps: of every clip; size is (Y, X), fps None keeps each file's own rate.
    max_broken: how many files may fail to decode, or be too short, and be left out.
    test_fraction: share of the samples that go to the test split, by the hash of ``split_by``.
    split_by: ``caption`` keeps clips of equal captions on one side; ``file`` is for captions that repeat; ``sets`` goes
        by the lists of ``ImageSets``.
    workers: threads that decode clips as training needs them; 0 decodes all of them once and keeps the pixels.
    """

    path: Path
    max_broken: int = Field(0, ge=0)
    test_fraction: float = Field(0.05, ge=0, lt=1)
    split_by: Literal["caption", "file", "sets"] = "caption"
    workers: int = Field(2, ge=0)


@hookimpl
def data() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="videos",
        options=VideosOptions,
        load="dit_compress_plugins.data_videos.data:Videos",
        requires=("av",),
        extra="video",
        summary="videos, images and folders of frames, with captions",
    )
