"""One JSON object a line: ``{"step": 3, "loss": 0.5}``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TextIO

from dit_compress.step.protocols import Tracker
from dit_compress_plugins.tracker_jsonl import CURVES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress_plugins.tracker_jsonl import JsonlOptions


class JsonlTracker(Tracker):
    """Writes ``curves.jsonl``."""

    def __init__(self, options: JsonlOptions) -> None:
        self.options = options
        self.handle: TextIO | None = None

    def open(self, folder: Path, *, resume_step: int) -> None:
        """Keep the lines before ``resume_step``, drop what a killed run wrote after its checkpoint."""
        path = folder / CURVES
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < resume_step]
        path.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        self.handle = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line, if it is this step's turn."""
        if self.handle and step % self.options.every == 0:
            self.handle.write(json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in values.items()}}) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self.handle:
            self.handle.close()
