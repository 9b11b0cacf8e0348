"""The end of a process."""

from __future__ import annotations

import atexit
import gc


def keep_garbage() -> None:
    """Leave the garbage where it lies when the process ends.

    Python's last search for it comes when libraries are half taken down. After coremltools and the text encoder of a
    pipeline were imported, it ended in a corrupted heap (coremltools 9.0, torch 2.13): status 139 after "no errors".
    """
    atexit.register(gc.freeze)
