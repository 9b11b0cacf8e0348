"""Damage to a JSON file, bit by bit."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def silent_flips(path: Path, read: Callable[[], Any], *, every: int = 3) -> list[int]:
    """Places of a file where one flipped bit is read as other values, without a message that names the file.

    A flip that changes no value (``1e-05`` to ``1E-05``) is none. Anything but a UserError is raised.
    """
    content, bits, silent = path.read_bytes(), random.Random(27), []
    values = json.loads(content)
    for index in range(0, len(content), every):
        changed = bytearray(content)
        changed[index] ^= 1 << bits.randrange(8)
        path.write_bytes(changed)
        try:
            found = read()
        except UserError as error:
            seen = str(error).startswith(f"{path}: ")
        else:
            seen = found == values
        if not seen:
            silent.append(index)
    path.write_bytes(content)
    return silent
