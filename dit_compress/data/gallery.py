"""A few videos that an evaluation leaves for the report: ``videos/`` and its index ``videos.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.core.files import write_json
from dit_compress.data.video import write_video

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

NUM_CAPTIONS = 4
FPS = 8.0


class Gallery:
    """Keeps the videos of the first few captions, by column."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "videos"
        self.index: list[dict[str, str]] = []
        self.captions: list[str] = []

    def add(self, caption: str, columns: Mapping[str, np.ndarray]) -> None:
        """One row: uint8 videos ``[F,Y,X,3]`` by the column they belong to; ignored once there are enough rows."""
        if caption in self.captions or len(self.captions) >= NUM_CAPTIONS:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for column, video in columns.items():
            name = f"{len(self.captions)}_{len(self.index)}.mp4"
            write_video(self.folder / name, video, FPS)
            self.index.append({"caption": caption, "column": column, "file": name})
        self.captions.append(caption)
        write_json(self.folder / "videos.json", self.index)

    def files(self) -> dict[str, str]:
        """What a step's result says of them."""
        return {"videos": "videos/videos.json"} if self.index else {}
