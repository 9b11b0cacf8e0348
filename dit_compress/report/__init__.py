"""The report of a run: ``summary.json`` (see :mod:`dit_compress.report.summary`) and ``report.html``.

Reads ``run.json``, ``recipe.yaml`` and each finished step's ``step.json``; beside it, where they are there,
``curves.jsonl`` (trackers), ``search.json`` and ``kept.json`` (prune), ``videos/videos.json`` (evaluate),
``files/manifest.json`` (export) and the bundle's lineage. Needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.core.files import whole_file, write_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Write both files of a run, finished or not; equal inputs give equal files.

    Args:
        run: the run's folder.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: the folder holds no run, or a file in it is broken.
    """
    from dit_compress.report.data import read_run
    from dit_compress.report.page import render
    from dit_compress.report.result import outcome
    from dit_compress.report.summary import summarise

    found = read_run(run)
    result = outcome(found)
    write_json(run / "summary.json", summarise(found, result))
    path = run / "report.html"
    with whole_file(path) as partial:
        partial.write_text(render(found, result), "utf-8")
    return path
