"""Clips that were encoded and decoded: a row of figures each, and the worst beside what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_compress.report.media import MAX_BYTES, data_uri

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dit_compress.report.data import Run, Step


@dataclass(frozen=True)
class Reconstruction:
    """What one evaluation found. rows: of its clips, the worst first. worst: name, and data URI by column."""

    step: Step
    rows: tuple[dict[str, Any], ...]
    worst: tuple[tuple[str, dict[str, str]], ...]

    @property
    def size(self) -> str:
        """Frames, height and width of the clips."""
        first, *others = {tuple(row["video"]) for row in self.rows}
        return "each at its own size" if others else " × ".join(map(str, first))


def reconstructions(run: Run) -> list[Reconstruction]:
    """Return the evaluations that measured clips one by one."""
    return [
        Reconstruction(step, tuple(sorted(rows, key=lambda row: row["psnr_db"])), tuple(_worst(step)))
        for step in run.of_kind("evaluate")
        if (rows := _rows(step.metrics.get("clips")))
    ]


def _rows(found: Any) -> list[dict[str, Any]]:
    """Return clips measured one by one; none where somebody's metric of that name is something else."""
    if not isinstance(found, list):
        return []
    return [row for row in found if isinstance(row, dict) and {"psnr_db", "video"} <= row.keys()]


def _worst(step: Step) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the clips shown, until their videos are too large for a page."""
    cells: dict[str, dict[str, Path]] = {}
    for video in step.worst:
        cells.setdefault(video.caption, {})[video.column] = video.path
    spent = 0
    for name, paths in cells.items():
        spent += sum(path.stat().st_size for path in paths.values())
        if spent > MAX_BYTES:
            return
        yield name, {column: data_uri(path) for column, path in paths.items()}
