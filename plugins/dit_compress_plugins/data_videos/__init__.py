"""Data: any folder of mp4 files beside a ``captions.jsonl``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dit_compress.hooks import Plugin, VideoOptions, hookimpl


class VideosOptions(VideoOptions):
    """The clips, and what is taken of each.

    path: the folder, with its ``captions.jsonl``.
    frames, size, fps: of every clip; size is (Y, X), fps None keeps each file's own rate.
    max_broken: how many files may fail to decode, or be too short, and be left out.
    test_fraction: share of the samples that go to the test split, by the hash of ``split_by``.
    split_by: ``caption`` keeps clips of equal captions on one side; ``file`` is for captions that repeat.
    workers: threads that decode clips as training needs them; 0 decodes all of them once and keeps the pixels.
    """

    path: Path
    max_broken: int = Field(0, ge=0)
    test_fraction: float = Field(0.05, ge=0, lt=1)
    split_by: Literal["caption", "file"] = "caption"
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
        summary="a folder of mp4 files and captions.jsonl",
    )
