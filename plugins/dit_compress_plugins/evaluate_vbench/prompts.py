"""The videos that VBench wants: which prompts, how many of each, and their names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from dit_compress_plugins.evaluate_vbench import VBenchOptions

FLICKER = "temporal_flickering"
LONGEST = 255
"""Bytes of a file's name."""


@dataclass(frozen=True)
class Wanted:
    """A video. index: its place among all, which its noise is a function of."""

    prompt: str
    number: int
    index: int

    @property
    def file(self) -> str:
        """Name it as VBench looks for it."""
        return f"{self.prompt}-{self.number}.mp4"


def wanted(options: VBenchOptions) -> list[Wanted]:
    """List the videos of the prompts file; those of a prompt that stands there twice, once.

    Raises:
        UserError: the file can't be read, has no prompts, or one that can't name a file.
    """
    path = Path(str(options.prompts))
    counts: dict[str, int] = {}
    for prompt, dimensions in _read(path):
        if options.dimensions is None or not dimensions or set(dimensions) & set(options.dimensions):
            count = options.flicker_seeds if FLICKER in dimensions and _draws(options, FLICKER) else options.seeds
            counts[prompt] = max(count, counts.get(prompt, 0))
    videos: list[Wanted] = []
    for prompt, count in counts.items():
        videos += [Wanted(prompt, number, len(videos) + number) for number in range(count)]
    if not videos:
        raise UserError("no prompts there", where=str(path), mend="Give VBench_full_info.json, or a prompt a line")
    if bad := [video.file for video in videos if "/" in video.prompt or len(video.file.encode()) > LONGEST]:
        mend = f"VBench finds videos by the prompt: without '/', up to {LONGEST} bytes"
        raise UserError(f"{bad[0][:60]!r} can't name a file", where=str(path), mend=mend)
    return videos


def _draws(options: VBenchOptions, dimension: str) -> bool:
    return options.dimensions is None or dimension in options.dimensions


def _read(path: Path) -> list[tuple[str, list[str]]]:
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"can't be read: {error}", where=str(path), mend="Give VBench_full_info.json") from error
    if path.suffix != ".json":
        return [(line.strip(), []) for line in text.splitlines() if line.strip()]
    try:
        return [(str(entry["prompt_en"]), list(entry["dimension"])) for entry in json.loads(text)]
    except (ValueError, TypeError, KeyError) as error:
        mend = "Give VBench_full_info.json: a list of {prompt_en, dimension}"
        raise UserError(f"no list of prompts: {error!r}", where=str(path), mend=mend) from error
