"""Videos side by side: the clips of every evaluate step, by caption and column, as data URIs."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.report.data import Run

MAX_ROWS = 8
"""Captions shown."""
MAX_BYTES = 32 * 2**20
"""Bytes of all videos together: the report must stay a file one can send."""


@dataclass(frozen=True)
class Wall:
    """cells: per caption, the data URI of each column or None. left_out: captions that are not shown."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str | None, ...]], ...]
    left_out: int = 0


def wall(run: Run) -> Wall | None:
    """Arrange the clips of all evaluate steps, columns in the order of the steps; captions that most columns have."""
    clips = [(step.name, video) for step in run.of_kind("evaluate") for video in step.videos]
    if not clips:
        return None
    keys = list(dict.fromkeys((step, video.column) for step, video in clips))
    cells: dict[str, dict[tuple[str, str], Path]] = {}
    for step, video in clips:
        cells.setdefault(video.caption, {}).setdefault((step, video.column), video.path)
    fullest = max(len(row) for row in cells.values())
    captions = [caption for caption, row in cells.items() if len(row) == fullest]
    rows: list[tuple[str, tuple[str | None, ...]]] = []
    spent = 0
    for caption in captions[:MAX_ROWS]:
        spent += sum(path.stat().st_size for path in cells[caption].values())
        if rows and spent > MAX_BYTES:
            break
        rows.append((caption, tuple(data_uri(path) if (path := cells[caption].get(key)) else None for key in keys)))
    return Wall(_titles(keys), tuple(rows), len(cells) - len(rows))


def _titles(keys: list[tuple[str, str]]) -> tuple[str, ...]:
    """Label the columns; with the step's name where two steps use one label."""
    labels = [column for _, column in keys]
    return tuple(column if labels.count(column) == 1 else f"{column} ({step})" for step, column in keys)


def data_uri(path: Path) -> str:
    """Encode an mp4 or a JPEG as a ``data:`` URI."""
    kind = "image/jpeg" if path.suffix == ".jpg" else "video/mp4"
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode("ascii")
