"""The error of somebody else's module, in one line: the error, and the line of their code that it came from."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import torch

_OURS = (
    Path(__file__).parents[1],
    Path(torch.__file__).parent,
    Path(sysconfig.get_path("stdlib")) / "contextlib.py",
    Path(sysconfig.get_path("stdlib")) / "copy.py",
)
"""Files and folders whose lines say nothing about a stranger's module."""


def raised(error: BaseException) -> str:
    """Return ``ValueError: too long, at dit/model.py:42``; the line itself where the error says nothing."""
    frame, name = _frame(error), type(error).__name__
    where = "" if frame is None else f", at {_short(Path(frame.filename))}:{frame.lineno}"
    message = str(error) or ("" if frame is None else (frame.line or ""))
    return f"{name}: {message}{where}" if message else f"{name}{where}"


def in_one_line(error: BaseException, most: int = 160) -> str:
    """Return the same, of a long message the beginning."""
    lines = str(error).splitlines() or [""]
    short = lines[0][:most]
    return raised(error).replace(str(error), short) if len(short) < len(str(error)) else raised(error)


def line_of(error: BaseException) -> tuple[str, str] | None:
    """Return ``dit/model.py:42`` and the line of a stranger's code that an error came from."""
    frame = _frame(error)
    return None if frame is None else (f"{_short(Path(frame.filename))}:{frame.lineno}", frame.line or "")


def _frame(error: BaseException) -> traceback.FrameSummary | None:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_absolute() and not any(path == ours or ours in path.parents for ours in _OURS):
            return frame
    return None


def _short(path: Path) -> Path:
    """Shorten a path to start at the working folder, where the file lies in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
